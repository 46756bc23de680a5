//! Threads that are allowed to wait for a device, so that no async worker ever does (invariant I6).
//!
//! 1. At most `limit` threads exist for one pool; they are started on demand and end when idle.
//! 2. A job that its caller stopped waiting for still runs to its end on its thread (a device call cannot
//!    be taken back), but a job that has not started by then is dropped unrun.
//! 3. A job that panics is an error for its caller and nothing to the pool.
//! 4. Nothing here ties an async runtime to a hung device: the threads are nobody's children.
//! 5. A job of several steps is given up when one step takes too long, not when all of them do: a slow device is
//!    not a hung one.

use std::{
    collections::VecDeque,
    io,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::error::KeyError;

/// How long an idle thread waits for the next job.
const IDLE: Duration = Duration::from_secs(10);
/// From this length on the queue is cleared of jobs that nobody waits for, each time one is added.
const LONG_QUEUE: usize = 64;

/// A small pool of threads that may block.
#[derive(Clone)]
pub(crate) struct Offload {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    limit: usize,
    idle: Duration,
    start: Start,
}

/// Starts a thread.
type Start = fn(Box<dyn FnOnce() + Send>) -> io::Result<()>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Box<dyn Job>>,
    threads: usize,
    idle: usize,
}

/// Something to do for a caller who may have gone by then.
trait Job: Send {
    fn is_abandoned(&self) -> bool;
    fn run(self: Box<Self>);
}

struct Call<T, F> {
    answer: oneshot::Sender<thread::Result<T>>,
    work: F,
}

impl<T: Send, F: FnOnce() -> T + Send> Job for Call<T, F> {
    fn is_abandoned(&self) -> bool {
        self.answer.is_closed()
    }

    fn run(self: Box<Self>) {
        if self.is_abandoned() {
            return;
        }
        let Self { answer, work } = *self;
        // A panic is its caller's error; the thread serves on. What the job borrowed died with it.
        let result = panic::catch_unwind(AssertUnwindSafe(work));
        // Err means that the caller has gone; its result has nowhere to go.
        let _ = answer.send(result);
    }
}

/// Where a job of several steps tells its caller that the device has answered once more.
#[derive(Clone)]
pub(crate) struct Steps(Arc<Mutex<Instant>>);

impl Steps {
    fn begin() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    /// The device has answered: the deadline begins anew.
    pub(crate) fn done(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// The time since the last answer.
    fn silence(&self) -> Duration {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .elapsed()
    }
}

impl Offload {
    /// A pool of at most `limit` threads.
    pub(crate) fn new(limit: usize) -> Self {
        Self::of(limit, IDLE, |serve| {
            let name = "keybond-device".into();
            thread::Builder::new().name(name).spawn(serve).map(drop)
        })
    }

    fn of(limit: usize, idle: Duration, start: Start) -> Self {
        Self {
            shared: Arc::new(Shared {
                queue: Mutex::default(),
                work: Condvar::new(),
                limit,
                idle,
                start,
            }),
        }
    }

    /// Runs `job` on a thread of the pool and waits for its result, at most until `deadline` has passed.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        deadline: Duration,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, KeyError> {
        self.run_steps(deadline, |_| job()).await
    }

    /// Runs a job of several steps and waits for its result, until one step takes longer than `each`.
    pub(crate) async fn run_steps<T: Send + 'static>(
        &self,
        each: Duration,
        job: impl FnOnce(&Steps) -> T + Send + 'static,
    ) -> Result<T, KeyError> {
        let (answer, mut result) = oneshot::channel();
        let steps = Steps::begin();
        let told = steps.clone();
        let work = move || job(&told);
        self.submit(Box::new(Call { answer, work }))?;
        loop {
            let left = each.saturating_sub(steps.silence());
            match tokio::time::timeout(left, &mut result).await {
                Ok(Ok(Ok(value))) => return Ok(value),
                Ok(Ok(Err(_)) | Err(_)) => {
                    return Err(KeyError::Local {
                        what: "key operation".into(),
                        cause: "the operation panicked".into(),
                    });
                }
                Err(_) if steps.silence() < each => {}
                Err(_) => return Err(KeyError::DeadlineExceeded { after: each }),
            }
        }
    }

    fn submit(&self, job: Box<dyn Job>) -> Result<(), KeyError> {
        let mut queue = self.shared.lock();
        if queue.jobs.len() >= LONG_QUEUE {
            queue.jobs.retain(|job| !job.is_abandoned());
        }
        queue.jobs.push_back(job);
        if queue.idle >= queue.jobs.len() || queue.threads == self.shared.limit {
            self.shared.work.notify_one();
            return Ok(());
        }
        queue.threads += 1;
        drop(queue);
        let shared = Arc::clone(&self.shared);
        if let Err(error) = (self.shared.start)(Box::new(move || shared.serve())) {
            let mut queue = self.shared.lock();
            queue.threads -= 1;
            // With a thread alive the job will be served; without one it would wait for nobody.
            if queue.threads == 0 {
                queue.jobs.clear();
                return Err(KeyError::Local {
                    what: "cannot start a thread for the key's device".into(),
                    cause: error.to_string(),
                });
            }
        }
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                drop(queue);
                job.run();
                queue = self.lock();
                continue;
            }
            queue.idle += 1;
            let (guard, timeout) = self
                .work
                .wait_timeout(queue, self.idle)
                .unwrap_or_else(PoisonError::into_inner);
            queue = guard;
            queue.idle -= 1;
            if timeout.timed_out() && queue.jobs.is_empty() {
                // Under the same lock as the look at the queue: a job added later finds one thread less.
                queue.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        future::poll_fn,
        pin::{Pin, pin},
        sync::mpsc,
        task::Poll,
    };

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_hung_job_costs_its_caller_the_deadline_and_others_nothing() {
        let pool = Offload::new(2);
        let (release, hung) = mpsc::channel::<()>();
        let slow = pool.run(Duration::from_millis(20), move || hung.recv());
        let error = slow.await.expect_err("the job hangs");
        assert!(
            matches!(error, KeyError::DeadlineExceeded { .. }),
            "{error}"
        );
        assert_eq!(
            pool.run(LONG, || 7)
                .await
                .expect("the second thread is free"),
            7
        );
        drop(release);
    }

    #[tokio::test]
    async fn a_job_may_take_long_as_long_as_no_step_does() {
        const STEPS: u32 = 6;
        let pool = Offload::new(1);
        // The step is short, against what else this machine may do in between.
        let (step, limit) = (Duration::from_millis(100), Duration::from_millis(500));
        let began = Instant::now();
        let job = move |steps: &Steps| {
            for _ in 0..STEPS {
                thread::sleep(step);
                steps.done();
            }
        };
        pool.run_steps(limit, job).await.expect("no step was late");
        assert!(began.elapsed() > limit);
    }

    #[tokio::test]
    async fn a_job_that_hangs_after_some_steps_costs_the_time_of_one() {
        let pool = Offload::new(1);
        let (release, hung) = mpsc::channel::<()>();
        let limit = Duration::from_millis(50);
        let job = move |steps: &Steps| {
            steps.done();
            steps.done();
            hung.recv()
        };
        let error = pool.run_steps(limit, job).await.expect_err("it hangs");
        assert!(
            matches!(error, KeyError::DeadlineExceeded { after } if after == limit),
            "{error}"
        );
        drop(release);
    }

    #[tokio::test]
    async fn a_panicking_job_is_an_error_and_the_pool_lives_on() {
        let pool = Offload::new(1);
        // Often: the answer must not overtake the pool's books.
        for _ in 0..500 {
            let error = pool
                .run(LONG, || panic::resume_unwind(Box::new("boom")))
                .await
                .map(|_: ()| ())
                .expect_err("it panicked");
            assert_eq!(error.code(), "key_local_failure");
            assert_eq!(pool.run(LONG, || 1).await.expect("a thread serves"), 1);
        }
    }

    #[tokio::test]
    async fn a_hung_pool_does_not_collect_the_jobs_of_those_who_left() {
        let pool = Offload::new(1);
        let (release, hung) = mpsc::channel::<()>();
        let (started, running) = oneshot::channel();
        let hanging = tokio::spawn({
            let pool = pool.clone();
            async move {
                let job = move || {
                    let _ = started.send(());
                    hung.recv()
                };
                pool.run(LONG, job).await
            }
        });
        running.await.expect("it runs");
        for _ in 0..10 * LONG_QUEUE {
            let left = pool.run(Duration::ZERO, || ()).await;
            assert!(left.is_err(), "the pool hangs");
        }
        assert!(pool.shared.lock().jobs.len() <= LONG_QUEUE);
        drop(release);
        assert!(hanging.await.expect("task").expect("job").is_err());
    }

    thread_local! {
        /// The machine has no thread to spare for those who ask on this one.
        static FULL: Cell<bool> = const { Cell::new(false) };
    }

    fn start(serve: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        if FULL.get() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        thread::spawn(serve);
        Ok(())
    }

    /// Hands in a job that has to wait.
    async fn begin(mut job: Pin<&mut impl Future>) {
        poll_fn(|cx| {
            assert!(job.as_mut().poll(cx).is_pending(), "it had to wait");
            Poll::Ready(())
        })
        .await;
    }

    #[tokio::test]
    async fn without_any_thread_a_job_fails_at_once_and_the_next_is_tried_again() {
        let pool = Offload::of(1, LONG, start);
        FULL.set(true);
        for _ in 0..2 {
            let error = pool.run(LONG, || 1).await.expect_err("there is no thread");
            assert_eq!(error.code(), "key_local_failure");
            let queue = pool.shared.lock();
            assert_eq!((queue.jobs.len(), queue.threads), (0, 0));
        }
        FULL.set(false);
        assert_eq!(pool.run(LONG, || 1).await.expect("a thread serves"), 1);
    }

    #[tokio::test]
    async fn with_a_thread_alive_a_job_waits_for_it_when_no_other_can_be_had() {
        let pool = Offload::of(2, LONG, start);
        let (release, held) = mpsc::channel::<()>();
        let mut first = pin!(pool.run(LONG, move || held.recv()));
        begin(first.as_mut()).await;
        FULL.set(true);
        let mut second = pin!(pool.run(LONG, || 2));
        begin(second.as_mut()).await;
        assert_eq!(pool.shared.lock().threads, 1);
        drop(release);
        assert!(first.await.expect("it was released").is_err());
        assert_eq!(second.await.expect("the thread goes on"), 2);
    }

    #[tokio::test]
    async fn idle_threads_end_and_the_next_job_starts_another() {
        let pool = Offload::of(2, Duration::from_millis(1), start);
        for round in 0..3 {
            let job = pool.run(LONG, move || round);
            assert_eq!(job.await.expect("a thread serves"), round);
            loop {
                let queue = pool.shared.lock();
                if queue.threads == 0 {
                    assert_eq!(queue.idle, 0);
                    break;
                }
                drop(queue);
                thread::yield_now();
            }
        }
    }

    #[tokio::test]
    async fn never_more_threads_than_the_limit() {
        let pool = Offload::new(3);
        let jobs = (0..50).map(|n| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.run(LONG, move || n).await })
        });
        let mut sum = 0;
        for job in jobs.collect::<Vec<_>>() {
            sum += job.await.expect("task").expect("job");
        }
        assert_eq!(sum, (0..50).sum::<i32>());
        assert!(pool.shared.lock().threads <= 3);
    }
}
