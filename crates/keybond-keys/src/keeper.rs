//! The cached key and who may change it.
//!
//! 1. A key that is there is read with one atomic load and a reference count, which threads do not share (see
//!    [`current`](crate::current)); no reader waits for anybody.
//! 2. Only the holder of the *turn* puts a key in or asks the stores. Anybody may take a key out.
//! 3. Whoever has the turn looks again before asking the stores: the key may be there by now.
//! 4. Work under the turn is nobody's child: a caller that leaves, or whose runtime ends, changes nothing.
//! 5. Callers with the same floor share one run. A floor's failure is not that of a lower floor.
//! 6. A provisional key is reconsidered by one run at a time; if that dies, the next reader starts another.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::{
    current::{Current, Recent},
    single_flight::SingleFlight,
    strength::Strength,
    sync::{self, AtomicBool},
};

/// Handles of one key. Threads beyond this number share them.
const HANDLES: usize = 16;

/// Who finds and makes the keys.
pub(crate) trait Hierarchy: Send + Sync + 'static {
    type Key: Send + Sync + 'static;
    type Error: Clone + Send + Sync + 'static;

    /// Asks the stores, or only those stronger than `above`, for a key that reaches `floor`.
    fn walk(
        &self,
        floor: Strength,
        above: Option<&Arc<Self::Key>>,
    ) -> impl Future<Output = Result<Arc<Self::Key>, Self::Error>> + Send;

    /// One more handle of the same key, with a reference count of its own.
    fn handle(key: &Self::Key) -> Self::Key;

    /// What this thread read last; `None` if the thread is ending.
    fn recent<R>(read: impl FnOnce(&Recent<Self::Key>) -> R) -> Option<R>;

    fn strength(key: &Self::Key) -> Strength;

    /// Whether a stronger store may answer later.
    fn is_provisional(key: &Self::Key) -> bool;

    /// Whether the same walk may end differently later.
    fn may_pass(error: &Self::Error) -> bool;

    /// The error for a key that is there but below the floor of a call.
    fn below(key: &Self::Key, floor: Strength) -> Self::Error;

    /// The error when work under the turn keeps dying.
    fn died() -> Self::Error;

    /// `key` is in use from now on, in the place of `before`.
    fn kept(&self, before: Option<&Arc<Self::Key>>, key: &Arc<Self::Key>);

    /// No stronger store will answer: `key` stays.
    fn settled(&self, key: &Arc<Self::Key>);
}

type Found<H> = Result<Arc<<H as Hierarchy>::Key>, <H as Hierarchy>::Error>;

/// Keeps one key.
pub(crate) struct Keeper<H: Hierarchy> {
    shared: Arc<Shared<H>>,
}

struct Shared<H: Hierarchy> {
    hierarchy: H,
    current: Current<Held<H::Key>>,
    turn: tokio::sync::Mutex<()>,
    /// One for each floor.
    flights: [SingleFlight<Found<H>>; 3],
    reconsider_after: Duration,
}

/// The key in use.
pub(crate) struct Held<K> {
    pub(crate) key: Arc<K>,
    handles: Arc<[Arc<K>; HANDLES]>,
    /// When to ask the stronger stores again; `None` if there is no hope.
    reconsider_at: Option<Instant>,
    reconsidered: AtomicBool,
}

impl<H: Hierarchy> Clone for Keeper<H> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<H: Hierarchy> Keeper<H> {
    pub(crate) fn new(hierarchy: H, reconsider_after: Duration) -> Self {
        Self {
            shared: Arc::new(Shared {
                hierarchy,
                current: Current::empty(),
                turn: tokio::sync::Mutex::new(()),
                flights: std::array::from_fn(|_| SingleFlight::new()),
                reconsider_after,
            }),
        }
    }

    pub(crate) fn hierarchy(&self) -> &H {
        &self.shared.hierarchy
    }

    /// The key in use. If it is provisional and due, its reconsideration starts.
    #[inline]
    pub(crate) fn cached(&self) -> Option<Arc<H::Key>> {
        let recalled = H::recent(|recent| self.shared.current.recall(recent));
        recalled.flatten().or_else(|| self.look())
    }

    fn look(&self) -> Option<Arc<H::Key>> {
        let (stamp, held) = self.shared.current.read();
        let held = held.as_ref()?;
        let handle = &held.handles[sync::thread_number() % HANDLES];
        if held.reconsider_at.is_none() {
            H::recent(|recent| recent.remember(stamp, handle));
        } else if held.is_due() && !held.reconsidered.swap(true, Ordering::AcqRel) {
            // Not remembered above: somebody has to look whether it is due.
            let work = Reconsideration(Arc::clone(held));
            sync::spawn(Arc::clone(&self.shared).reconsider(work));
        }
        Some(Arc::clone(handle))
    }

    /// The key in use, if it reaches `floor`.
    #[inline]
    pub(crate) fn cached_of(&self, floor: Strength) -> Option<Arc<H::Key>> {
        self.cached().filter(|key| H::strength(key) >= floor)
    }

    /// A key that reaches `floor`: the one in use, or what the stores have to offer.
    pub(crate) async fn get(&self, floor: Strength) -> Found<H> {
        if let Some(key) = self.cached_of(floor) {
            return Ok(key);
        }
        let shared = &self.shared;
        shared.flights[floor as usize - 1]
            .join(|| Arc::clone(shared).find(floor))
            .await
            .unwrap_or_else(|| Err(H::died()))
    }

    /// The key in use, without any consequence.
    pub(crate) fn current(&self) -> Option<Arc<Held<H::Key>>> {
        self.shared.current.load()
    }

    /// Takes `held` out, if it still is the one in use.
    pub(crate) fn discard(&self, held: &Arc<Held<H::Key>>) -> bool {
        self.shared.current.replace(held, None)
    }

    /// Does `work`, even if the caller leaves, while nobody else asks the stores, and puts its key in the place
    /// of the one in use. If `work` fails, that one stays.
    pub(crate) async fn exchange<F>(&self, work: F) -> Found<H>
    where
        F: Future<Output = Found<H>> + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        let (answer, result) = oneshot::channel();
        sync::spawn(async move {
            let _turn = shared.turn.lock().await;
            let made = work.await;
            if let Ok(key) = &made {
                shared.keep(None, key);
            }
            // Err: the caller has left, which changes nothing.
            let _ = answer.send(made);
        });
        result.await.unwrap_or_else(|_| Err(H::died()))
    }

    /// Takes the key out and does `work` before anybody asks the stores again, even if the caller leaves;
    /// `None` if it dies.
    pub(crate) async fn without_key<T, F>(&self, work: F) -> Option<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        let (answer, result) = oneshot::channel();
        sync::spawn(async move {
            let _turn = shared.turn.lock().await;
            shared.current.store(None);
            // Err: the caller has left, which changes nothing.
            let _ = answer.send(work.await);
        });
        result.await.ok()
    }
}

impl<H: Hierarchy> Shared<H> {
    async fn find(self: Arc<Self>, floor: Strength) -> Found<H> {
        let _turn = self.turn.lock().await;
        let held = self.current.load();
        if let Some(held) = &held {
            if H::strength(&held.key) >= floor {
                return Ok(Arc::clone(&held.key));
            }
            if held.reconsider_at.is_none() {
                return Err(H::below(&held.key, floor));
            }
        }
        let before = held.as_ref().map(|held| &held.key);
        let key = self.hierarchy.walk(floor, before).await?;
        self.keep(before, &key);
        Ok(key)
    }

    async fn reconsider(self: Arc<Self>, work: Reconsideration<H::Key>) {
        let _turn = self.turn.lock().await;
        let held = &work.0;
        let in_use = self.current.load();
        if !in_use.is_some_and(|now| Arc::ptr_eq(&now, held)) {
            return;
        }
        let floor = H::strength(&held.key);
        match self.hierarchy.walk(floor, Some(&held.key)).await {
            Ok(key) => self.keep(Some(&held.key), &key),
            Err(error) => {
                let again = H::may_pass(&error).then(|| Instant::now() + self.reconsider_after);
                let next = Held {
                    key: Arc::clone(&held.key),
                    handles: Arc::clone(&held.handles),
                    reconsider_at: again,
                    reconsidered: AtomicBool::new(false),
                };
                // Unless the key was taken out meanwhile: it must not come back.
                if self.current.replace(held, Some(Arc::new(next))) && again.is_none() {
                    self.hierarchy.settled(&held.key);
                }
            }
        }
    }

    /// Only with the turn in hand.
    fn keep(&self, before: Option<&Arc<H::Key>>, key: &Arc<H::Key>) {
        let handles = std::array::from_fn(|_| Arc::new(H::handle(key)));
        self.current.store(Some(Arc::new(Held {
            key: Arc::clone(key),
            handles: Arc::new(handles),
            reconsider_at: H::is_provisional(key).then(|| Instant::now() + self.reconsider_after),
            reconsidered: AtomicBool::new(false),
        })));
        self.hierarchy.kept(before, key);
    }
}

impl<K> Held<K> {
    fn is_due(&self) -> bool {
        self.reconsider_at.is_some_and(|at| Instant::now() >= at)
    }
}

/// The right to reconsider a key; given back when it is dropped, however that comes.
struct Reconsideration<K>(Arc<Held<K>>);

impl<K> Drop for Reconsideration<K> {
    fn drop(&mut self) {
        self.0.reconsidered.store(false, Ordering::Release);
    }
}
