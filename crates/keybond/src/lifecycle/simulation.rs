//! Two years in seconds: the machines against a model of Azure, with outages, clocks that jump and keys that
//! die, from a seed. What the client does with the machines' answers (`client/obtain.rs`) is written down here
//! once more in events.
//!
//! What must hold at every read:
//! - while a token is usable by what the services said of it, nobody waits and nobody fails;
//! - a token goes with the certificate that it was bound to;
//! - the metadata service is asked no faster than the rate that is set.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    Input, Life, Machine, Output, SKEW,
    certificate::{self, Certificate, Event as Happened, InUse},
    pace::{Pace, Rate},
    token::{self, Granted},
};

const RATE: Rate = Rate {
    per_second: 5.0,
    burst: 5,
};
const RESOURCES: usize = 3;
const DAY: u64 = 86_400_000;
const MONTH: u64 = 2_629_800_000;
/// The published waits between attempts, in milliseconds.
const RETRIES: [u64; 3] = [1_000, 2_000, 4_000];

/// Milliseconds of true time since the beginning.
type Moment = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Read(usize),
    /// A request to the metadata service: which leg, which attempt.
    Imds(u8, usize),
    Minted,
    TokenAsked(usize, usize),
    TokenCame(usize),
    ImdsFails,
    ImdsRecovers,
    StsFails,
    StsRecovers,
    ClockJumps,
    ClockMended,
    KeyDies,
    NextPhase,
}

#[derive(Clone, Copy)]
struct Cert {
    id: u64,
    key: u64,
    /// By the client's clock.
    got: SystemTime,
    not_before: SystemTime,
    not_after: SystemTime,
}

#[derive(Clone, Copy)]
struct Held {
    version: u64,
    life: Life,
    cert: Cert,
}

#[derive(Clone, Copy)]
struct Token {
    /// The certificate that the token service bound it to.
    bound_to: u64,
    version: u64,
    asked_at: SystemTime,
    expires_in: Duration,
    cert: Cert,
}

#[derive(Default)]
struct Resource {
    machine: Machine<()>,
    token: Option<Token>,
    running: Option<Run>,
    last_read: Moment,
}

/// A fetch that is under way.
struct Run {
    refresh: bool,
    /// What it asks with, once it has one.
    with: Option<Held>,
    /// How many callers wait for it.
    waiting: u64,
}

#[derive(Debug, Default)]
struct Totals {
    reads: u64,
    waited: u64,
    /// Waits that no outage, jump or death explains.
    needless: u64,
    failed: u64,
    mints: u64,
    tokens: u64,
    imds: u64,
    outages: u64,
    jumps: u64,
    deaths: u64,
    fullest_second: usize,
}

struct World {
    now: Moment,
    queue: BinaryHeap<Reverse<(Moment, u64, Event)>>,
    sequence: u64,
    dice: u64,
    // Azure
    lifetime: u64,
    imds_up: bool,
    sts_up: bool,
    issued: u64,
    // the machine
    ahead: i64,
    key: u64,
    // the client
    certificate: Certificate<u64, ()>,
    held: Option<Held>,
    retired_below: u64,
    versions: u64,
    pace: Pace,
    metadata_until: Moment,
    minting: bool,
    waiting_for_mint: Vec<usize>,
    resources: Vec<Resource>,
    // the judge
    disturbed: Moment,
    calm_after: u64,
    last_second: VecDeque<Moment>,
    totals: Totals,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            now: 0,
            queue: BinaryHeap::new(),
            sequence: 0,
            dice: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            lifetime: 14 * DAY,
            imds_up: true,
            sts_up: true,
            issued: 0,
            ahead: 0,
            key: 1,
            certificate: Certificate::default(),
            held: None,
            retired_below: 0,
            versions: 0,
            pace: Pace::new(RATE),
            metadata_until: 0,
            minting: false,
            waiting_for_mint: Vec::new(),
            resources: (0..RESOURCES).map(|_| Resource::default()).collect(),
            disturbed: 0,
            calm_after: 0,
            last_second: VecDeque::new(),
            totals: Totals::default(),
        }
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice % sides.max(1)
    }

    fn jitter(&mut self) -> f64 {
        self.roll(2_000_001) as f64 / 1e6 - 1.0
    }

    fn later(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.queue
            .push(Reverse((self.now + delay, self.sequence, event)));
    }

    fn truth(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000) + Duration::from_millis(self.now)
    }

    /// The time as the client sees it.
    fn clock(&self) -> SystemTime {
        let ahead = Duration::from_millis(self.ahead.unsigned_abs());
        if self.ahead < 0 {
            self.truth() - ahead
        } else {
            self.truth() + ahead
        }
    }

    /// Something happened that may make callers wait for a while.
    fn disturb(&mut self) {
        self.disturbed = self.now;
    }

    fn run(mut self, months: u64, longest_phase: u64) -> Totals {
        for resource in 0..RESOURCES {
            self.later(resource as u64, Event::Read(resource));
        }
        self.later(0, Event::NextPhase);
        let end = months * MONTH;
        let mut phase_ends = 0;
        while let Some(Reverse((at, _, event))) = self.queue.pop() {
            if at > end {
                break;
            }
            self.now = at;
            match event {
                Event::NextPhase => {
                    phase_ends = self.next_phase(longest_phase);
                    self.later(phase_ends - at, Event::NextPhase);
                }
                Event::Read(resource) => {
                    self.read(resource);
                    let gap = self.lifetime.min(phase_ends) / 10;
                    let gap = 1 + self.roll(gap.min(20 * 60_000));
                    self.later(gap, Event::Read(resource));
                }
                Event::Imds(leg, attempt) => self.imds(leg, attempt),
                Event::Minted => self.minted(),
                Event::TokenAsked(resource, attempt) => self.token_asked(resource, attempt),
                Event::TokenCame(resource) => self.token_came(resource),
                other => self.fate(other),
            }
        }
        self.totals
    }

    fn next_phase(&mut self, longest: u64) -> Moment {
        const LIFETIMES: [u64; 6] = [90_000, 600_000, DAY / 3, DAY, 7 * DAY, 14 * DAY];
        let before = self.lifetime;
        self.lifetime = LIFETIMES[self.roll(6) as usize];
        self.calm_after = 2 * before.max(self.lifetime);
        self.disturb();
        let lifetime = self.lifetime;
        let length = (lifetime * 2_000).min(longest);
        for (event, every) in [
            (Event::ImdsFails, 12),
            (Event::StsFails, 15),
            (Event::ClockJumps, 40),
            (Event::KeyDies, 60),
        ] {
            let mut at = 0;
            loop {
                at += 1 + self.roll(2 * every * lifetime);
                if at >= length {
                    break;
                }
                self.later(at, event);
            }
        }
        self.now + length
    }

    fn fate(&mut self, event: Event) {
        self.disturb();
        match event {
            Event::ImdsFails | Event::StsFails => {
                self.totals.outages += 1;
                // Most are shorter than the window in which the next certificate is got, some are longer.
                let most = if self.roll(4) == 0 { 2 } else { 4 };
                let length = 1 + self.roll(2 * self.lifetime / most);
                if event == Event::ImdsFails {
                    self.imds_up = false;
                    self.later(length, Event::ImdsRecovers);
                } else {
                    self.sts_up = false;
                    self.later(length, Event::StsRecovers);
                }
            }
            Event::ImdsRecovers => self.imds_up = true,
            Event::StsRecovers => self.sts_up = true,
            Event::ClockJumps => {
                self.totals.jumps += 1;
                const FAR: [i64; 6] =
                    [60_000, 299_000, 301_000, 3_600_000, 86_400_000, 518_400_000];
                let far = FAR[self.roll(6) as usize];
                self.ahead = if self.roll(2) == 0 { far } else { -far };
                let mended = 1 + self.roll(self.lifetime);
                self.later(mended, Event::ClockMended);
            }
            Event::ClockMended => self.ahead = 0,
            Event::KeyDies => {
                self.totals.deaths += 1;
                let (dead, now) = (self.key, self.clock());
                self.key += 1;
                self.certificate.step(now, Happened::KeyDied(dead));
                if let Some(used) = self.certificate.in_use().filter(|used| used.key == dead) {
                    self.held = None;
                    self.retired_below = self.retired_below.max(used.version + 1);
                }
            }
            _ => {}
        }
    }

    /// What the services said of it, and nothing that the machines say.
    fn is_usable(&self, token: &Token) -> bool {
        let now = self.clock();
        let margin = Duration::from_secs(300).min(token.expires_in / 10);
        let cert = &token.cert;
        // Up to five minutes before it was there are no life.
        let before = cert.got.duration_since(cert.not_before).unwrap_or_default();
        let begin = cert.not_before + before.min(Duration::from_secs(300));
        let whole = cert.not_after.duration_since(begin).unwrap_or_default();
        let cert_margin = Duration::from_secs(30).min(whole / 30);
        now < token.asked_at + token.expires_in - margin
            && now < token.cert.not_after - cert_margin
            && token.version >= self.retired_below
    }

    fn read(&mut self, index: usize) {
        self.totals.reads += 1;
        let now = self.clock();
        let token = self.resources[index].token;
        let since = self.now - self.resources[index].last_read;
        self.resources[index].last_read = self.now;
        let Some(token) = token.filter(|token| self.is_usable(token)) else {
            let retired = token.is_some_and(|token| token.version < self.retired_below);
            let resource = &mut self.resources[index];
            if retired {
                resource.machine.step(now, Input::Revoked);
            }
            assert_eq!(resource.machine.step(now, Input::Asked), Output::Start);
            self.totals.waited += 1;
            let calm = self.now - self.disturbed > self.calm_after;
            if calm && since < self.lifetime / 8 {
                self.totals.needless += 1;
            }
            self.start(index, false);
            if let Some(run) = &mut self.resources[index].running {
                run.waiting += 1;
            }
            return;
        };
        assert_eq!(token.bound_to, token.cert.id, "a foreign certificate");
        match self.resources[index].machine.step(now, Input::Asked) {
            Output::Use { until } => assert!(until > now),
            Output::UseAndStart { .. } => self.start(index, true),
            other => panic!("a usable token, and {other:?}"),
        }
        // What the client calls `tend`.
        if self.held.is_some()
            && let Output::UseAndStart { .. } = self.ask_certificate()
        {
            self.mint();
        }
    }

    fn ask_certificate(&mut self) -> Output<()> {
        let (now, key) = (self.clock(), Some(self.key));
        self.certificate.step(now, Happened::Asked { key })
    }

    fn start(&mut self, index: usize, refresh: bool) {
        if self.resources[index].running.is_some() {
            return;
        }
        self.resources[index].running = Some(Run {
            refresh,
            with: None,
            waiting: 0,
        });
        self.with_certificate(index);
    }

    /// A fetch gets its certificate, at once or later.
    fn with_certificate(&mut self, index: usize) {
        let now = self.clock();
        let usable = self.held.filter(|held| now < held.life.usable_until);
        let refresh = self.resources[index]
            .running
            .as_ref()
            .is_some_and(|run| run.refresh);
        match (self.ask_certificate(), usable) {
            (Output::Use { .. }, Some(held)) => self.ask_token(index, held),
            (Output::UseAndStart { .. }, Some(held)) => {
                if refresh {
                    self.waiting_for_mint.push(index);
                } else {
                    self.ask_token(index, held);
                }
                self.mint();
            }
            (Output::Start, None) => {
                self.waiting_for_mint.push(index);
                self.mint();
            }
            (answer, held) => panic!("{answer:?}, held: {}", held.is_some()),
        }
    }

    fn mint(&mut self) {
        if self.minting {
            return;
        }
        self.minting = true;
        let leg = u8::from(self.now < self.metadata_until);
        self.imds_turn(0, leg, 0);
    }

    fn imds_turn(&mut self, delay: u64, leg: u8, attempt: usize) {
        let at = Duration::from_millis(self.now + delay);
        let wait = self.pace.turn(at, Duration::MAX).unwrap();
        let wait = wait.as_nanos().div_ceil(1_000_000);
        self.later(
            delay + u64::try_from(wait).unwrap(),
            Event::Imds(leg, attempt),
        );
    }

    fn imds(&mut self, leg: u8, attempt: usize) {
        self.totals.imds += 1;
        self.last_second.push_back(self.now);
        while self
            .last_second
            .front()
            .is_some_and(|at| at + 1_000 <= self.now)
        {
            self.last_second.pop_front();
        }
        self.totals.fullest_second = self.totals.fullest_second.max(self.last_second.len());
        let latency = 2 + self.roll(300);
        if !self.imds_up {
            match RETRIES.get(attempt) {
                Some(wait) => self.imds_turn(latency + wait, leg, attempt + 1),
                None => self.mint_ended(None),
            }
        } else if leg == 0 {
            self.metadata_until = self.now + 3_600_000;
            self.imds_turn(latency, 1, 0);
        } else {
            self.later(latency, Event::Minted);
        }
    }

    fn minted(&mut self) {
        self.issued += 1;
        let truth = self.truth();
        let cert = Cert {
            id: self.issued,
            key: self.key,
            got: self.clock(),
            not_before: truth - Duration::from_millis(self.roll(5_000)),
            not_after: truth + Duration::from_millis(self.lifetime),
        };
        let now = self.clock();
        let believed = now < cert.not_after && cert.not_before <= now + SKEW;
        self.mint_ended(believed.then_some(cert));
    }

    fn mint_ended(&mut self, cert: Option<Cert>) {
        self.minting = false;
        let (now, jitter) = (self.clock(), self.jitter());
        if let Some(cert) = cert {
            self.totals.mints += 1;
            self.versions += 1;
            let life = certificate::life(now, cert.not_before, cert.not_after, jitter);
            let in_use = InUse {
                version: self.versions,
                key: cert.key,
            };
            self.certificate.step(now, Happened::Got { in_use, life });
            self.held = Some(Held {
                version: self.versions,
                life,
                cert,
            });
        } else {
            self.metadata_until = 0;
            self.certificate.step(
                now,
                Happened::Failed {
                    cause: (),
                    hold: None,
                    jitter,
                },
            );
        }
        for index in std::mem::take(&mut self.waiting_for_mint) {
            let usable = self.held.filter(|held| now < held.life.usable_until);
            match usable {
                Some(held) => self.ask_token(index, held),
                None => self.fetch_failed(index),
            }
        }
    }

    fn ask_token(&mut self, index: usize, held: Held) {
        if let Some(run) = &mut self.resources[index].running {
            run.with = Some(held);
        }
        let latency = 5 + self.roll(500);
        self.later(latency, Event::TokenAsked(index, 0));
    }

    fn token_asked(&mut self, index: usize, attempt: usize) {
        if self.sts_up {
            self.token_came_or_refused(index);
        } else if attempt == 0 {
            self.later(1_000, Event::TokenAsked(index, 1));
        } else {
            self.fetch_failed(index);
        }
    }

    fn token_came_or_refused(&mut self, index: usize) {
        let with = self.resources[index]
            .running
            .as_ref()
            .and_then(|run| run.with);
        let held = with.unwrap();
        // The token service goes by true time.
        if self.truth() >= held.cert.not_after || held.cert.key != self.key {
            self.fetch_failed(index);
        } else {
            self.later(1, Event::TokenCame(index));
        }
    }

    fn token_came(&mut self, index: usize) {
        let (now, jitter) = (self.clock(), self.jitter());
        let run = self.resources[index].running.take().unwrap();
        let held = run.with.unwrap();
        if held.version < self.retired_below {
            // Given up meanwhile: the next round uses the new one.
            self.resources[index].running = Some(Run { with: None, ..run });
            return self.with_certificate(index);
        }
        self.totals.tokens += 1;
        let granted = Granted {
            asked_at: now,
            expires_in: Duration::from_secs(if self.roll(3) == 0 && self.lifetime > DAY / 4 {
                3_600 * 8
            } else {
                86_399
            }),
            refresh_in: None,
        };
        let resource = &mut self.resources[index];
        let life = token::life(granted, &held.life, jitter);
        resource.machine.step(now, Input::Got(life));
        resource.token = Some(Token {
            bound_to: held.cert.id,
            version: held.version,
            asked_at: now,
            expires_in: granted.expires_in,
            cert: held.cert,
        });
    }

    fn fetch_failed(&mut self, index: usize) {
        let (now, jitter) = (self.clock(), self.jitter());
        let resource = &mut self.resources[index];
        let run = resource.running.take().unwrap();
        let failed = Input::Failed {
            cause: (),
            hold: None,
            jitter,
        };
        resource.machine.step(now, failed);
        self.totals.failed += run.waiting;
        let calm = self.now - self.disturbed > self.calm_after;
        assert!(run.waiting == 0 || !calm, "a read failed for no reason");
    }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(otherwise)
}

/// `KEYBOND_SEEDS`, `KEYBOND_MONTHS` and `KEYBOND_PHASE_DAYS` make it longer.
#[test]
#[allow(clippy::print_stdout)]
fn two_years_of_outages_jumps_and_deaths() {
    let seeds = number("KEYBOND_SEEDS", 3);
    let months = number("KEYBOND_MONTHS", 24);
    let longest_phase = number("KEYBOND_PHASE_DAYS", 60) * DAY;
    for seed in 1..=seeds {
        let totals = World::new(seed).run(months, longest_phase);
        println!("seed {seed}, {months} months: {totals:?}");
        assert!(totals.reads > 1_000 && totals.mints > 10 && totals.outages > 10);
        assert!(totals.jumps > 2 && totals.deaths > 2);
        assert_eq!(totals.needless, 0, "somebody waited for no reason");
        assert!(
            totals.fullest_second <= 10,
            "five at once and five a second"
        );
    }
}
