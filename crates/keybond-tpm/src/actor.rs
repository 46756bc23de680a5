//! The thread that owns the device. Callers hand it work and wait for the answer until their deadline; a TPM that
//! hangs costs them that, and nobody else anything.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, channel, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    error::TpmError,
    owner::Owner,
    queue::{Next, Queue, Refused},
};

/// The thread's own time-out names the command that hung, so callers give it this much longer to say so.
const GRACE: Duration = Duration::from_millis(20);
/// How long dropping the last handle waits for loaded objects to be flushed.
const GOODBYE: Duration = Duration::from_secs(2);

struct Job {
    deadline: Instant,
    run: Box<dyn FnOnce(&mut Owner) + Send>,
}

/// A running thread. Dropping it lets the thread finish what is queued, flush everything and end.
pub(crate) struct Actor {
    queue: Arc<Queue<Job>>,
    /// Nothing is ever sent; it is cut when the thread has ended.
    ended: std::sync::Mutex<Receiver<()>>,
}

impl Actor {
    /// Starts the thread. After `idle` without work it gives the connection back.
    pub(crate) fn start(
        owner: Owner,
        capacity: usize,
        idle: Option<Duration>,
    ) -> Result<Self, TpmError> {
        let queue = Arc::new(Queue::new(capacity, |depth| {
            metrics::gauge!("keybond_tpm_queue_depth").set(depth as f64);
        }));
        let (alive, ended) = channel();
        let jobs = Arc::clone(&queue);
        thread::Builder::new()
            .name("keybond-tpm".into())
            .spawn(move || {
                serve(owner, &jobs, idle);
                drop(alive);
            })
            .map_err(|error| TpmError::Local {
                what: "the TPM's thread",
                cause: error.to_string(),
            })?;
        Ok(Self {
            queue,
            ended: ended.into(),
        })
    }

    /// Calls that wait for the device, without the one in progress.
    pub(crate) fn depth(&self) -> usize {
        self.queue.len()
    }

    /// Has the job done by the thread. It may be done twice (see [`Owner::perform`]).
    pub(crate) fn call<T: Send + 'static>(
        &self,
        timeout: Duration,
        mut job: impl FnMut(&mut Owner) -> Result<T, TpmError> + Send + 'static,
    ) -> Result<T, TpmError> {
        let began = Instant::now();
        let deadline = began + timeout;
        let started = Arc::new(AtomicBool::new(false));
        let begun = Arc::clone(&started);
        let late = || TpmError::DeadlineExceeded {
            command: if started.load(Ordering::SeqCst) {
                "TPM command"
            } else {
                "queue"
            },
            after: began.elapsed(),
        };
        let gone = |cause: &str| TpmError::Local {
            what: "the TPM's thread",
            cause: cause.to_owned(),
        };
        let (answer, answered) = sync_channel(1);
        let run = Box::new(move |owner: &mut Owner| {
            begun.store(true, Ordering::SeqCst);
            let result = owner.perform(began, deadline, &mut job);
            // The caller may have given up.
            let _ = answer.send(result);
        });
        self.queue
            .push(Job { deadline, run }, deadline)
            .map_err(|refused| match refused {
                Refused::Full => late(),
                Refused::Closed => gone("it has ended"),
            })?;
        let left = deadline.saturating_duration_since(Instant::now());
        match answered.recv_timeout(left + GRACE) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(late()),
            // The job was dropped undone, because its time was over, or it panicked.
            Err(RecvTimeoutError::Disconnected) if Instant::now() >= deadline => Err(late()),
            Err(RecvTimeoutError::Disconnected) => Err(gone("it failed in the middle")),
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.queue.close();
        if let Ok(ended) = self.ended.get_mut() {
            // A hung TPM must not hang its user: after this the thread ends on its own.
            let _ = ended.recv_timeout(GOODBYE);
        }
    }
}

fn serve(mut owner: Owner, jobs: &Queue<Job>, idle: Option<Duration>) {
    let mut limit = idle;
    loop {
        match jobs.pop(limit) {
            // Its caller has given up.
            Next::Item(job) if Instant::now() >= job.deadline => {}
            Next::Item(job) => {
                limit = idle;
                if catch_unwind(AssertUnwindSafe(|| (job.run)(&mut owner))).is_err() {
                    tracing::error!("a job of the TPM's thread panicked; connecting anew");
                    owner.forget();
                }
            }
            Next::Idle => {
                owner.release();
                limit = None;
            }
            Next::Closed => return,
        }
    }
}
