use std::time::UNIX_EPOCH;

use proptest::prelude::*;

use super::{
    certificate::{Certificate, Event, InUse},
    token::Granted,
    *,
};

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + seconds_of(seconds)
}

fn seconds_of(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn life(now: SystemTime, seconds: u64) -> Life {
    let whole = seconds_of(seconds);
    certificate::life(now, now, now + whole, 0.0)
}

/// What a machine must know, written down in the plainest way.
#[derive(Clone, Default)]
struct Memory {
    life: Option<Life>,
    hold: Option<SystemTime>,
    /// Since when nobody should be told to start ahead of time.
    told: Option<SystemTime>,
}

impl Memory {
    fn note(&mut self, now: SystemTime, input: &Input<u8>) {
        match input {
            Input::Asked => {}
            Input::Got(life) => {
                *self = Self {
                    life: Some(*life),
                    ..Self::default()
                }
            }
            Input::Failed { hold, .. } => {
                self.hold = hold.map(|hold| now + hold);
                self.told = None;
            }
            Input::Revoked => {
                self.life = None;
                self.told = None;
            }
        }
    }

    fn check(&mut self, now: SystemTime, output: &Output<u8>) {
        let usable = self.life.is_some_and(|life| now < life.usable_until);
        match output {
            Output::Use { until } => {
                assert!(usable && *until > now);
            }
            Output::UseAndStart { until } => {
                assert!(usable && *until > now);
                let life = self.life.unwrap();
                assert!(now >= life.refresh_on || now + SKEW < life.obtained);
                if let Some(told) = self.told.filter(|told| *told <= now) {
                    assert!(now.duration_since(told).unwrap() >= SHORTEST_PAUSE);
                }
                self.told = Some(now);
            }
            Output::Start => assert!(!usable),
            Output::Fail(_) => {
                assert!(!usable && self.hold.is_some_and(|until| now < until));
            }
            Output::Wait => panic!("somebody asked"),
        }
    }
}

/// Every sequence of four steps from a set that has one of each kind, with the clock going on and back.
#[test]
fn every_short_story_ends_well() {
    const JUMPS: [i64; 5] = [0, 1, 40, 5_000, -3_600];
    let inputs = |now: SystemTime, kind: usize| match kind {
        0 => Input::Got(life(now, 90)),
        1 => Input::Got(life(now, 86_400)),
        2 => Input::Failed {
            cause: 1,
            hold: None,
            jitter: 1.0,
        },
        3 => Input::Failed {
            cause: 2,
            hold: Some(seconds_of(60)),
            jitter: -1.0,
        },
        4 => Input::Revoked,
        _ => Input::Asked,
    };
    fn walk(
        depth: u32,
        now: SystemTime,
        machine: &Machine<u8>,
        memory: &Memory,
        inputs: &impl Fn(SystemTime, usize) -> Input<u8>,
        stories: &mut u64,
    ) {
        if depth == 0 {
            *stories += 1;
            return;
        }
        for jump in JUMPS {
            let now = if jump < 0 {
                now - seconds_of(jump.unsigned_abs())
            } else {
                now + seconds_of(jump.unsigned_abs())
            };
            for kind in 0..6 {
                let (mut machine, mut memory) = (machine.clone(), memory.clone());
                let input = inputs(now, kind);
                memory.note(now, &input);
                machine.step(now, input);
                // Whoever asks after any of this gets an answer that makes sense.
                memory.check(now, &machine.step(now, Input::Asked));
                walk(depth - 1, now, &machine, &memory, inputs, stories);
            }
        }
    }
    let mut stories = 0;
    walk(
        4,
        at(1_000_000),
        &Machine::default(),
        &Memory::default(),
        &inputs,
        &mut stories,
    );
    assert_eq!(stories, 30_u64.pow(4));
}

proptest! {
    /// Long stories: the value is served until its last second, whatever fails.
    #[test]
    fn a_usable_value_is_never_refused(
        steps in prop::collection::vec((0_u64..4_000, 0_usize..8, -1.0_f64..1.0), 1..300),
        whole in prop::sample::select(vec![90_u64, 3_600, 86_400, 14 * 86_400]),
    ) {
        let mut now = at(10_000_000);
        let (mut machine, mut memory) = (Machine::default(), Memory::default());
        for (gap, kind, jitter) in steps {
            now += seconds_of(gap);
            let input = match kind {
                0 => Input::Got(life(now, whole)),
                1 => Input::Failed { cause: 1, hold: None, jitter },
                2 => Input::Failed { cause: 2, hold: Some(seconds_of(gap)), jitter },
                _ => Input::Asked,
            };
            memory.note(now, &input);
            machine.step(now, input);
            memory.check(now, &machine.step(now, Input::Asked));
        }
    }

    /// A token never outlives its certificate, and both are refreshed while they are usable.
    #[test]
    fn times_are_in_order(
        expires_in in 1_u64..2_000_000,
        refresh_in in prop::option::of(0_u64..2_000_000),
        certificate in 90_u64..1_300_000,
        late in 0_f64..1.0,
        jitter in -1.0_f64..=1.0,
    ) {
        let born = at(1_000_000_000);
        let certificate = certificate::life(born, born, born + seconds_of(certificate), jitter);
        let asked_at = born + certificate.usable_until.duration_since(born).unwrap().mul_f64(late);
        let granted = Granted {
            asked_at,
            expires_in: seconds_of(expires_in),
            refresh_in: refresh_in.map(seconds_of),
        };
        let token = token::life(granted, &certificate, jitter);
        prop_assert!(certificate.refresh_on < certificate.usable_until);
        prop_assert!(token.usable_until <= certificate.usable_until);
        prop_assert!(token.usable_until < asked_at + granted.expires_in);
        prop_assert!(token.refresh_on >= asked_at);
        if granted.refresh_in.is_none() {
            prop_assert!(token.refresh_on < token.usable_until || token.usable_until <= asked_at);
        }
    }
}

#[test]
fn times_are_as_promised() {
    let (day, minute) = (86_400, 60);
    let born = at(1_000 * day);
    let two_weeks = certificate::life(born, born, born + seconds_of(14 * day), 0.0);
    assert_eq!(two_weeks.refresh_on, born + seconds_of(13 * day));
    let short = certificate::life(born, born, born + seconds_of(90), 0.0);
    assert_eq!(short.refresh_on, born + seconds_of(45));
    assert_eq!(short.usable_until, born + seconds_of(87));
    // Dated back by five minutes, and read from the disk a minute later: no difference.
    for later in [0, 60] {
        let (from, until) = (born - seconds_of(300), born + seconds_of(90));
        let found = certificate::life(born + seconds_of(later), from, until, 0.0);
        assert_eq!(found.refresh_on, short.refresh_on);
        assert_eq!(found.usable_until, short.usable_until);
    }
    // A tenth earlier or later.
    for (jitter, lead) in [(-1.0, 0.9), (1.0, 1.1)] {
        let life = certificate::life(born, born, born + seconds_of(14 * day), jitter);
        let found = (born + seconds_of(14 * day)).duration_since(life.refresh_on);
        assert_eq!(found.unwrap(), seconds_of(day).mul_f64(lead));
    }

    let granted = |expires_in, refresh_in: Option<u64>| Granted {
        asked_at: born,
        expires_in: seconds_of(expires_in),
        refresh_in: refresh_in.map(seconds_of),
    };
    let token = |granted, jitter| token::life(granted, &two_weeks, jitter);
    // Half its life, and five minutes before its end.
    let day_long = token(granted(day, None), 0.0);
    assert_eq!(day_long.refresh_on, born + seconds_of(day / 2));
    assert_eq!(day_long.usable_until, born + seconds_of(day - 5 * minute));
    // As the service says, five minutes earlier or later.
    let asked = token(granted(day, Some(20_000)), 1.0);
    assert_eq!(asked.refresh_on, born + seconds_of(20_300));
    let asked = token(granted(day, Some(20_000)), -1.0);
    assert_eq!(asked.refresh_on, born + seconds_of(19_700));
    // A short life: a tenth is kept.
    let short_token = token(granted(100, None), 0.0);
    assert_eq!(short_token.usable_until, born + seconds_of(90));
    // On a certificate of 90 seconds: in the middle half of what remains after 45.
    for (jitter, from) in [(-1.0, 55), (0.0, 66), (1.0, 76)] {
        let moved = token::life(granted(day, None), &short, jitter).refresh_on;
        let moved = moved.duration_since(born).unwrap().as_secs();
        assert_eq!(moved, from, "{jitter}");
    }
}

#[test]
fn while_runs_fail_they_are_few_and_enough() {
    for (whole, least, most) in [(90, 6, 20), (3_600, 8, 60), (14 * 86_400, 200, 400)] {
        let born = at(1_000_000_000);
        let mut machine = Machine::<u8>::default();
        let value = life(born, whole);
        machine.step(born, Input::Got(value));
        let mut starts = 0;
        let mut now = value.refresh_on;
        while now < value.usable_until {
            if let Output::UseAndStart { .. } = machine.step(now, Input::Asked) {
                starts += 1;
                let failed = Input::Failed {
                    cause: 1,
                    hold: None,
                    jitter: 0.0,
                };
                machine.step(now, failed);
            }
            now += seconds_of(1);
        }
        assert!((least..=most).contains(&starts), "{whole} s: {starts}");
    }
}

#[test]
fn a_value_that_is_due_at_birth_does_not_make_everybody_run() {
    let now = at(1_000_000_000);
    let mut machine = Machine::<u8>::default();
    let born_old = certificate::life(
        now,
        now - seconds_of(13 * 86_400),
        now + seconds_of(3_600),
        0.0,
    );
    machine.step(now, Input::Got(born_old));
    let Output::Use { until } = machine.step(now, Input::Asked) else {
        panic!("it rests");
    };
    assert!(until >= now + FIRST_PAUSE);
    assert!(matches!(
        machine.step(until, Input::Asked),
        Output::UseAndStart { .. }
    ));
}

#[test]
fn a_clock_that_was_set_back_makes_a_value_due_and_forgets_waits() {
    let now = at(1_000_000_000);
    let mut machine = Machine::<u8>::default();
    machine.step(now, Input::Got(life(now, 86_400)));
    let back = now - seconds_of(86_400);
    assert!(matches!(
        machine.step(back, Input::Asked),
        Output::UseAndStart { .. }
    ));
    let held = Input::Failed {
        cause: 7,
        hold: Some(seconds_of(30)),
        jitter: 0.0,
    };
    machine.step(now, held);
    machine.step(now, Input::Revoked);
    assert_eq!(machine.step(now, Input::Asked), Output::Fail(7));
    assert_eq!(machine.step(back, Input::Asked), Output::Start);
}

#[test]
fn a_certificate_follows_its_key() {
    let now = at(1_000_000_000);
    let mut machine = Certificate::<u8, u8>::default();
    let ask =
        |machine: &mut Certificate<u8, u8>, key| machine.step(now, Event::Asked { key: Some(key) });
    let got = |version, key| Event::Got {
        in_use: InUse { version, key },
        life: life(now, 86_400),
    };
    assert_eq!(ask(&mut machine, 1), Output::Start);
    machine.step(now, got(1, 1));
    assert!(matches!(ask(&mut machine, 1), Output::Use { .. }));
    // Another key took over: the old certificate serves until the next is there, and one run is enough.
    assert!(matches!(ask(&mut machine, 2), Output::UseAndStart { .. }));
    assert!(matches!(ask(&mut machine, 2), Output::Use { .. }));
    machine.step(now, got(2, 2));
    assert!(matches!(ask(&mut machine, 2), Output::Use { .. }));
    // The death of another key changes nothing, that of this one everything.
    machine.step(now, Event::KeyDied(1));
    assert!(matches!(ask(&mut machine, 2), Output::Use { .. }));
    machine.step(now, Event::KeyDied(2));
    assert_eq!(ask(&mut machine, 2), Output::Start);
    machine.step(now, got(3, 3));
    // A run that was overtaken brings no old version back.
    machine.step(now, got(2, 2));
    assert_eq!(machine.in_use().map(|used| used.version), Some(3));
    machine.step(now, Event::Refused { version: 2 });
    assert!(matches!(ask(&mut machine, 3), Output::Use { .. }));
    machine.step(now, Event::Refused { version: 3 });
    assert_eq!(ask(&mut machine, 3), Output::Start);
}
