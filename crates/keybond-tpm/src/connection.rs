//! One connection to a TPM: a command goes out, its response comes back, within the deadline.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use crate::{
    address::TpmAddress,
    error::TpmError,
    transport::{self, Fault, Transport},
    wire::{Command, Response},
};

/// The first pause before a command is sent again; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// A connection. After an I/O error, a time-out or a malformed answer it is poisoned: whatever comes next could
/// be the late answer to an old command. Its owner replaces it.
pub(crate) struct Connection {
    transport: Box<dyn Transport>,
    poisoned: bool,
    /// Whether it ever carried an answer. If so, a failure may just be that the TPM was restarted since.
    proven: bool,
    /// The instant until which answers are waited for, and since when.
    deadline: Instant,
    began: Instant,
}

impl Connection {
    pub(crate) fn open(
        address: &TpmAddress,
        began: Instant,
        deadline: Instant,
    ) -> Result<Self, TpmError> {
        let transport = transport::connect(address, deadline)?;
        Ok(Self {
            transport,
            poisoned: false,
            proven: false,
            deadline,
            began,
        })
    }

    pub(crate) fn over(transport: Box<dyn Transport>, deadline: Instant) -> Self {
        Self {
            transport,
            poisoned: false,
            proven: false,
            deadline,
            began: Instant::now(),
        }
    }

    pub(crate) fn set_deadline(&mut self, began: Instant, deadline: Instant) {
        (self.began, self.deadline) = (began, deadline);
    }

    pub(crate) fn poisoned(&self) -> bool {
        self.poisoned
    }

    pub(crate) fn proven(&self) -> bool {
        self.proven
    }

    /// Runs one command, sending it again while the TPM asks for that.
    pub(crate) fn run(&mut self, command: &Command) -> Result<Response, TpmError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match self.exchange(command) {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            match error.response_code() {
                Some(code) if code.wants_resend() && Instant::now() + pause < self.deadline => {
                    tracing::debug!(command = command.name, %code, ?pause, "sending again");
                    thread::sleep(pause);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                _ => return Err(error),
            }
        }
    }

    fn exchange(&mut self, command: &Command) -> Result<Response, TpmError> {
        if self.poisoned {
            return Err(self.fault(command, io::Error::from(io::ErrorKind::BrokenPipe).into()));
        }
        // Poisoned until the answer is understood, whatever happens in between.
        self.poisoned = true;
        let response = self
            .transport
            .send(&command.bytes, self.deadline)
            .and_then(|()| self.transport.receive(self.deadline))
            .map_err(|fault| self.fault(command, fault))?;
        let result = command.parse(&response);
        if matches!(result, Ok(_) | Err(TpmError::Response { .. })) {
            self.poisoned = false;
            self.proven = true;
        }
        result
    }

    fn fault(&self, command: &Command, fault: Fault) -> TpmError {
        let command = command.name;
        match fault {
            Fault::Io(cause) => TpmError::Connection {
                command,
                cause: cause.into(),
            },
            Fault::TimedOut => TpmError::DeadlineExceeded {
                command,
                after: self.began.elapsed(),
            },
            Fault::Length(length) => TpmError::Malformed {
                command,
                field: "responseSize",
                detail: format!("{length}, expected 10 to 4096 and what really came"),
            },
        }
    }
}
