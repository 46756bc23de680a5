//! What is kept by name, for as long as anybody may want it.
//!
//! 1. A read is a look into a table that is never changed in place. It takes no lock and waits for nobody.
//! 2. A new name costs the copy of a small part of the names, whatever is in the others.
//! 3. Whoever invents names fills no memory with them: a new name in a part of [`SPARED`] or more drops the part's
//!    slots that are of no use to anybody ([`Slot::is_idle`]) and that nobody holds. A usable value is never dropped,
//!    nor the slot of one that is being got. Whoever takes such a slot in that very instant is served by it, and the next one
//!    finds a new slot.

use std::{hash::BuildHasher as _, sync::Arc, time::SystemTime};

use arc_swap::ArcSwap;
use hashbrown::{DefaultHashBuilder, HashTable};

/// Parts of the names. With ten thousand of them a new one copies some forty references.
const PARTS: usize = 256;

/// Slots in a part, of those that nobody needs, that are spared: there are few names in honest use, and they are
/// asked for again.
const SPARED: usize = 16;

/// What is kept for one name.
pub(crate) trait Slot {
    /// Its name.
    fn name(&self) -> &str;

    /// Whether it could be made anew without anybody noticing. A run that gets its value holds it, and is not asked
    /// about.
    fn is_idle(&self, now: SystemTime) -> bool;
}

/// The slots by name.
pub(crate) struct Slots<S> {
    /// Seeded at random: who chooses names cannot choose where they go.
    hasher: DefaultHashBuilder,
    parts: Box<[Part<S>]>,
}

type Table<S> = HashTable<Arc<S>>;
type Part<S> = ArcSwap<Table<S>>;

impl<S: Slot> Slots<S> {
    pub(crate) fn new() -> Self {
        // An empty table allocates nothing, and all parts begin with the same one.
        let empty = Arc::new(HashTable::new());
        Self {
            hasher: DefaultHashBuilder::default(),
            parts: (0..PARTS)
                .map(|_| ArcSwap::new(Arc::clone(&empty)))
                .collect(),
        }
    }

    /// What `look` finds in the slot of this name, if there is one.
    #[inline]
    pub(crate) fn read<T>(&self, name: &str, look: impl FnOnce(&S) -> Option<T>) -> Option<T> {
        let hash = self.hasher.hash_one(name);
        look(find(&self.part(hash).load(), hash, name)?)
    }

    /// The slot of this name, made if need be.
    pub(crate) fn get_or_make(
        &self,
        name: &str,
        now: SystemTime,
        make: impl FnOnce() -> S,
    ) -> Arc<S> {
        let hash = self.hasher.hash_one(name);
        let part = self.part(hash);
        if let Some(slot) = find(&part.load(), hash, name) {
            return Arc::clone(slot);
        }
        let fresh = Arc::new(make());
        // Another caller may have made it meanwhile; whichever is in the table is the one.
        part.rcu(|slots| match find(slots, hash, name) {
            Some(_) => Arc::clone(slots),
            None => Arc::new(self.with(slots, hash, &fresh, now)),
        });
        find(&part.load(), hash, name).map_or(fresh, Arc::clone)
    }

    /// A copy of a table with one more slot, and without those that are of no use to anybody if it is large.
    fn with(&self, slots: &Table<S>, hash: u64, fresh: &Arc<S>, now: SystemTime) -> Table<S> {
        let mut larger = slots.clone();
        if larger.len() >= SPARED {
            // Of a slot that nobody holds there are the references of the two tables.
            larger.retain(|slot| Arc::strong_count(slot) > 2 || !slot.is_idle(now));
        }
        let rehash = |slot: &Arc<S>| self.hasher.hash_one(slot.name());
        larger.insert_unique(hash, Arc::clone(fresh), rehash);
        larger
    }

    fn part(&self, hash: u64) -> &Part<S> {
        // The tables use the low bits and the highest seven.
        &self.parts[(hash >> 40) as usize % PARTS]
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.parts.iter().map(|part| part.load().len()).sum()
    }
}

fn find<'t, S: Slot>(slots: &'t Table<S>, hash: u64, name: &str) -> Option<&'t Arc<S>> {
    slots.find(hash, |slot| slot.name() == name)
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        time::UNIX_EPOCH,
    };

    use super::*;

    struct Named {
        name: String,
        idle: AtomicBool,
    }

    impl Slot for Named {
        fn name(&self) -> &str {
            &self.name
        }

        fn is_idle(&self, _now: SystemTime) -> bool {
            self.idle.load(Ordering::Relaxed)
        }
    }

    fn get(slots: &Slots<Named>, name: &str) -> Arc<Named> {
        slots.get_or_make(name, UNIX_EPOCH, || Named {
            name: name.to_owned(),
            idle: AtomicBool::new(true),
        })
    }

    fn is_there(slots: &Slots<Named>, name: &str) -> bool {
        slots.read(name, |_| Some(())).is_some()
    }

    #[test]
    fn invented_names_fill_no_memory_and_drop_nothing_of_use() {
        let slots = Slots::new();
        let in_use: Vec<String> = (0..2_000).map(|index| format!("use-{index}")).collect();
        for name in &in_use {
            get(&slots, name).idle.store(false, Ordering::Relaxed);
        }
        let held: Vec<_> = (0..2_000)
            .map(|n| get(&slots, &format!("held-{n}")))
            .collect();
        for index in 0..50_000 {
            get(&slots, &format!("invented-{index}"));
            if index % 1_000 == 0 {
                let most = 4_000 + PARTS * SPARED;
                assert!(slots.len() <= most, "{} after {index}", slots.len());
            }
        }
        assert!(in_use.iter().all(|name| is_there(&slots, name)));
        for slot in &held {
            assert!(Arc::ptr_eq(slot, &get(&slots, slot.name())));
        }
        // When they are of no use any more, they go like the others.
        for name in &in_use {
            get(&slots, name).idle.store(true, Ordering::Relaxed);
        }
        drop(held);
        for index in 0..50_000 {
            get(&slots, &format!("again-{index}"));
        }
        assert!(slots.len() <= PARTS * SPARED, "{}", slots.len());
    }

    #[test]
    fn few_names_stay_whatever_becomes_of_them() {
        let slots = Slots::new();
        let names: Vec<String> = (0..SPARED).map(|index| index.to_string()).collect();
        for name in &names {
            get(&slots, name);
        }
        assert!(names.iter().all(|name| is_there(&slots, name)));
    }

    #[test]
    fn a_new_name_copies_one_part() {
        let slots = Slots::new();
        for index in 0..20_000 {
            get(&slots, &index.to_string())
                .idle
                .store(false, Ordering::Relaxed);
        }
        let tables = || -> Vec<_> { slots.parts.iter().map(Part::load_full).collect() };
        let before = tables();
        get(&slots, "one more");
        let changed: Vec<_> = (before.iter().zip(tables()))
            .filter(|(before, after)| !Arc::ptr_eq(before, after))
            .collect();
        assert_eq!(changed.len(), 1);
        assert!(changed[0].0.len() < 20_000 / 64, "{}", changed[0].0.len());
    }

    #[test]
    fn everybody_gets_the_same_slot() {
        let slots = Slots::new();
        let all: Vec<Vec<Arc<Named>>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..500).map(|n| get(&slots, &n.to_string())).collect()))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        for others in &all[1..] {
            assert!(
                all[0]
                    .iter()
                    .zip(others)
                    .all(|(one, other)| Arc::ptr_eq(one, other))
            );
        }
    }
}
