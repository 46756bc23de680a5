//! Several processes and one key.

use std::{
    env,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use keybond_keys::{KeyProvider, StateDir};
use keybond_testkit::stores::FileStore;

const HOME: &str = "KEYBOND_TEST_HOME";
const ROLE: &str = "KEYBOND_TEST_ROLE";

fn provider(home: &Path, creation_takes: Duration) -> KeyProvider {
    let keys = StateDir::open(home.join("store")).unwrap();
    KeyProvider::builder()
        .store(FileStore::new(keys).with_slow_creation(creation_takes))
        .state_dir(StateDir::open(home.join("state")).unwrap())
        .build()
}

/// Not a test of its own: what the child processes of the tests below do.
#[test]
fn child() {
    let (Some(home), Some(role)) = (env::var_os(HOME), env::var_os(ROLE)) else {
        return;
    };
    let takes = if role == "holder" { 3600 } else { 0 };
    let provider = provider(&PathBuf::from(home), Duration::from_secs(takes));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let key = runtime.block_on(provider.get_or_create_key()).unwrap();
    println!("key {}", key.id());
}

fn spawn(home: &Path, role: &str) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "machine::child", "--nocapture"])
        .env(HOME, home)
        .env(ROLE, role)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The key that a child printed; `None` if it was killed before.
fn key_of(mut child: Child) -> Option<String> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let key = lines
        .map_while(Result::ok)
        .find_map(|line| Some(line.split_once("key ")?.1.to_owned()));
    child.wait().unwrap();
    key
}

fn creations(home: &Path) -> Vec<u32> {
    FileStore::new(StateDir::open(home.join("store")).unwrap()).creations()
}

#[test]
fn processes_that_start_together_share_one_key() {
    let home = tempfile::tempdir().unwrap();
    let children: Vec<_> = (0..8).map(|_| spawn(home.path(), "user")).collect();
    let mut keys: Vec<_> = children
        .into_iter()
        .map(|child| key_of(child).unwrap())
        .collect();
    keys.dedup();
    assert_eq!(keys.len(), 1);
    assert_eq!(creations(home.path()).len(), 1);
}

#[test]
fn a_killed_holder_blocks_nobody() {
    let home = tempfile::tempdir().unwrap();
    let mut holder = spawn(home.path(), "holder");
    let give_up = Instant::now() + Duration::from_secs(30);
    while creations(home.path()).is_empty() {
        assert!(Instant::now() < give_up, "the holder did not begin");
        std::thread::yield_now();
    }
    let waiter = spawn(home.path(), "user");
    holder.kill().unwrap();
    holder.wait().unwrap();
    let killed = Instant::now();
    assert!(key_of(waiter).is_some());
    assert!(
        killed.elapsed() < Duration::from_secs(10),
        "{:?}",
        killed.elapsed()
    );
    assert_eq!(creations(home.path()).len(), 2);
}

/// `KEYBOND_COLD_STARTS=200` runs the long form.
#[test]
fn cold_starts_with_a_kill_leave_one_valid_key() {
    let runs: u32 = env::var("KEYBOND_COLD_STARTS").map_or(3, |runs| runs.parse().unwrap());
    for run in 0..runs {
        let home = tempfile::tempdir().unwrap();
        let mut children: Vec<_> = (0..8).map(|_| spawn(home.path(), "user")).collect();
        // Spread over the whole of a start, without luck: the same instants in every execution.
        std::thread::sleep(Duration::from_millis(u64::from(run * 37 % 400)));
        let mut victim = children.swap_remove(run as usize % 8);
        victim.kill().unwrap();
        victim.wait().unwrap();
        let mut keys: Vec<_> = children
            .into_iter()
            .map(|child| key_of(child).unwrap())
            .collect();
        keys.dedup();
        assert_eq!(keys.len(), 1, "run {run}");
        assert!(creations(home.path()).len() <= 2, "run {run}");
        assert_eq!(
            key_of(spawn(home.path(), "user")).unwrap(),
            keys[0],
            "run {run}"
        );
    }
}
