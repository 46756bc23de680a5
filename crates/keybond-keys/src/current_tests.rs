//! What a thread remembers of the value in use. Apart from it: `tests/model.rs` compiles that file, too.

use std::sync::Arc;

use crate::current::{Current, Recent};

/// Reads as the provider does: from memory if that is still the value in use.
fn read(current: &Current<u32>, recent: &Recent<u32>) -> Option<Arc<u32>> {
    current.recall(recent).or_else(|| {
        let (stamp, value) = current.read();
        let value = value.as_ref()?;
        recent.remember(stamp, value);
        Some(Arc::clone(value))
    })
}

#[test]
fn what_was_read_is_remembered_until_another_value_is_in_use() {
    let (current, recent) = (Current::empty(), Recent::nothing());
    assert!(read(&current, &recent).is_none());
    assert!(current.load().is_none());

    current.store(Some(Arc::new(1)));
    assert!(current.recall(&recent).is_none(), "nothing was read yet");
    assert_eq!(read(&current, &recent).as_deref(), Some(&1));
    assert_eq!(current.recall(&recent).as_deref(), Some(&1));

    current.store(Some(Arc::new(2)));
    assert!(current.recall(&recent).is_none(), "that was the one before");
    assert_eq!(read(&current, &recent).as_deref(), Some(&2));
    assert_eq!(current.recall(&recent).as_deref(), Some(&2));
    // What was never in use has no stamp to be remembered by.
    recent.remember(0, &Arc::new(3));
    assert_eq!(current.recall(&recent).as_deref(), Some(&2));
}

#[test]
fn only_the_value_that_was_seen_is_replaced() {
    let (current, recent) = (Current::empty(), Recent::nothing());
    current.store(Some(Arc::new(1)));
    let seen = current.load().unwrap();
    assert!(current.replace(&seen, Some(Arc::new(2))));
    assert!(!current.replace(&seen, Some(Arc::new(3))));
    assert_eq!(read(&current, &recent).as_deref(), Some(&2));
    let seen = current.load().unwrap();
    assert!(current.replace(&seen, None));
    assert!(current.load().is_none());
    assert!(current.recall(&recent).is_none());
}

#[test]
fn a_value_taken_out_is_released_by_its_last_user() {
    let (current, recent) = (Current::empty(), Recent::nothing());
    current.store(Some(Arc::new(1)));
    let used = Arc::downgrade(&read(&current, &recent).unwrap());
    current.store(None);
    assert!(used.upgrade().is_none(), "whoever remembers it");
}
