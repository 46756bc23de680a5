//! Several processes and one key.

use std::{
    env,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use keybond_keys::{KeyName, KeyProvider, StateDir, StoreId};
use keybond_testkit::stores::{FileStore, Op, ScriptedStore};

const HOME: &str = "KEYBOND_TEST_HOME";
const ROLE: &str = "KEYBOND_TEST_ROLE";
/// Where the TPM is; without it keys are in files.
#[cfg(unix)]
const TPM: &str = "KEYBOND_TEST_TPM";

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
    let home = PathBuf::from(home);
    let provider =
        tpm_provider(&home).unwrap_or_else(|| provider(&home, Duration::from_secs(takes)));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let key = runtime.block_on(provider.get_or_create_key()).unwrap();
    println!("key {}", key.id());
}

#[cfg(unix)]
fn tpm_provider(home: &Path) -> Option<KeyProvider> {
    let address = env::var(TPM).ok()?.parse().unwrap();
    let state = StateDir::open(home.join("state")).unwrap();
    let store = keybond_keys::Tpm2Store::new(address, &state).unwrap();
    let provider = KeyProvider::builder().store(store).state_dir(state);
    Some(provider.retry_budget(Duration::from_secs(20)).build())
}

#[cfg(not(unix))]
fn tpm_provider(_home: &Path) -> Option<KeyProvider> {
    None
}

fn spawn(home: &Path, role: &str) -> Child {
    command(home, role).spawn().unwrap()
}

fn command(home: &Path, role: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", "machine::child", "--nocapture"])
        .env(HOME, home)
        .env(ROLE, role)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
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

/// A process that makes a key, and never ends by itself. It holds the lock of the key.
fn holder(home: &Path) -> Child {
    let holder = spawn(home, "holder");
    let give_up = Instant::now() + Duration::from_secs(30);
    while creations(home).is_empty() {
        assert!(Instant::now() < give_up, "the holder did not begin");
        std::thread::yield_now();
    }
    holder
}

#[test]
fn after_a_killed_holder_the_next_process_makes_the_key() {
    let home = tempfile::tempdir().unwrap();
    let mut holder = holder(home.path());
    let waiter = spawn(home.path(), "user");
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(key_of(waiter).is_some());
    assert_eq!(creations(home.path()).len(), 2);
}

/// The operating system frees the lock, and whoever waits looks for it every 20 ms: what is over that is the making
/// and proving of its own key, which takes nothing here.
#[test]
fn a_killed_holder_blocks_nobody_for_longer_than_a_second() {
    let mut longest = Duration::ZERO;
    for _ in 0..5 {
        let home = tempfile::tempdir().unwrap();
        let mut holder = holder(home.path());
        let store = ScriptedStore::new(StoreId::Tpm2).stocked();
        let provider = KeyProvider::builder()
            .store(store.clone())
            .state_dir(StateDir::open(home.path().join("state")).unwrap())
            .build();
        let waiter = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(provider.get_or_create_key()).unwrap();
            Instant::now()
        });
        // It has looked for a key; then it wants the lock.
        while store.calls(Op::Open) == 0 {
            std::thread::yield_now();
        }
        let killed = Instant::now();
        holder.kill().unwrap();
        let served = waiter.join().unwrap();
        holder.wait().unwrap();
        assert_eq!(store.calls(Op::Create), 1);
        // Who did not wait for the lock would have been served before.
        longest = longest.max(served.checked_duration_since(killed).unwrap());
    }
    println!("served {longest:?} after the kill at the latest");
    assert!(longest <= Duration::from_secs(1), "{longest:?}");
}

/// `KEYBOND_COLD_STARTS=200` runs the long form (`cargo xtask soak cold-starts`); `KEYBOND_SEED` repeats a run's
/// instants.
#[test]
fn cold_starts_with_a_kill_leave_one_valid_key() {
    // Processes start slowly under Wine.
    let runs = if cfg!(windows) { 3 } else { 20 };
    let runs = env::var("KEYBOND_COLD_STARTS").map_or(runs, |runs| runs.parse().unwrap());
    let fresh = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .subsec_nanos()
            .into()
    };
    let seed = env::var("KEYBOND_SEED").map_or_else(|_| fresh(), |seed| seed.parse().unwrap());
    let mut random = Random(seed);
    // How long a start takes here and now, so that a kill may come at every point of it.
    let home = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let children: Vec<_> = (0..8).map(|_| spawn(home.path(), "user")).collect();
    assert!(children.into_iter().all(|child| key_of(child).is_some()));
    let whole = began.elapsed();
    println!("seed {seed}, a start of 8 processes takes {whole:?}");

    let (mut in_time, mut makers) = (0, 0);
    for run in 0..runs {
        let home = tempfile::tempdir().unwrap();
        let (victim, part) = (random.below(8), random.fraction());
        // Every other time it is whoever makes the key, from then on.
        let makes = run % 2 == 1;
        let children = (0..8).map(|_| spawn(home.path(), "user")).collect();
        let (killed, key) = cold_start(children, |children| {
            if !makes {
                std::thread::sleep(whole.mul_f64(part));
                return victim;
            }
            let maker = loop {
                if let Some(maker) = creations(home.path()).first() {
                    break *maker;
                }
                std::thread::yield_now();
            };
            std::thread::sleep(whole.mul_f64(part / 8.0));
            let is_it = |child: &Child| child.id() == maker;
            children.iter().position(is_it).unwrap()
        });
        in_time += u32::from(killed.without_answer);
        let creations = creations(home.path());
        makers += u32::from(creations[0] == killed.process && creations.len() > 1);
        let told = format!("seed {seed}, run {run}");
        assert!(creations.len() <= 2, "{told}: {creations:?}");
        let found = key_of(spawn(home.path(), "user"));
        assert_eq!(found, Some(key), "{told}");
        assert_eq!(
            self::creations(home.path()).len(),
            creations.len(),
            "{told}: the key was made anew"
        );
    }
    println!(
        "{runs} runs: {in_time} killed before they had a key, {makers} of them while they made it; \
         one valid key each time"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn a_cold_start_with_a_kill_leaves_one_valid_key_in_a_tpm() {
    use keybond_testkit::{Swtpm, Tpmrm0};

    let tpm = Swtpm::start().unwrap();
    let device = match Tpmrm0::start(&tpm.socket(), 0o600, Duration::ZERO) {
        Ok(device) => device,
        Err(error) => {
            let fuse = Path::new("/dev/fuse").exists();
            assert!(!fuse, "/dev/fuse is there, but: {error}");
            keybond_testkit::skipped("cold starts with a key in a TPM", &error);
            return;
        }
    };
    let home = tempfile::tempdir().unwrap();
    let start = || {
        let mut command = command(home.path(), "user");
        command.env(TPM, device.address()).spawn().unwrap()
    };
    let children = (0..8).map(|_| start()).collect();
    // Making a key takes the software TPM longer than this.
    let (_, key) = cold_start(children, |_| {
        std::thread::sleep(Duration::from_millis(60));
        0
    });
    assert_eq!(key_of(start()), Some(key));
}

struct Killed {
    process: u32,
    without_answer: bool,
}

/// Kills one of the processes, when and as `choose` says; the key that all the others have.
fn cold_start(
    mut children: Vec<Child>,
    choose: impl FnOnce(&[Child]) -> usize,
) -> (Killed, String) {
    let victim = choose(&children);
    let mut victim = children.swap_remove(victim);
    victim.kill().unwrap();
    let killed = Killed {
        process: victim.id(),
        without_answer: key_of(victim).is_none(),
    };
    let mut keys: Vec<_> = children
        .into_iter()
        .map(|child| key_of(child).expect("a key, whoever was killed"))
        .collect();
    keys.dedup();
    assert_eq!(keys.len(), 1, "{keys:?}");
    (killed, keys.remove(0))
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> usize {
        (self.next() % limit) as usize
    }

    /// At least 0, less than 1.
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[tokio::test]
async fn each_name_is_a_key_of_its_own() {
    let home = tempfile::tempdir().unwrap();
    let store = || FileStore::new(StateDir::open(home.path().join("store")).unwrap());
    let named = async |name: &str| {
        let provider = KeyProvider::builder()
            .store(store())
            .key_name(KeyName::new(name).unwrap())
            .build();
        provider.get_or_create_key().await.unwrap().id()
    };
    let (one, other) = (named("one").await, named("other").await);
    assert_ne!(one, other);
    assert_eq!(named("one").await, one);
    assert_eq!(store().creations().len(), 2);
}
