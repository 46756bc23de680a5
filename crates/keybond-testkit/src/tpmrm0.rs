//! A stand-in for the kernel's /dev/tpmrm0: a file in a FUSE mount that many processes can use at once, with
//! spaces, permission bits, delays, non-blocking writes and poll.

use std::{
    collections::HashMap,
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, UNIX_EPOCH},
};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, PollEvents, PollFlags, PollNotifier,
    ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyPoll, ReplyWrite, Request,
    SessionACL, WriteFlags, spawn_mount,
};
use tempfile::TempDir;

use crate::spaces::Spaces;

const FILE: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(1);

/// A mounted device. Dropping it unmounts it.
#[derive(Debug)]
pub struct Tpmrm0 {
    // Unmounted before its directory is removed.
    session: Option<BackgroundSession>,
    dir: TempDir,
}

impl Tpmrm0 {
    /// Mounts a device in front of the TPM at the Unix socket `upstream`. Only whom the permission bits `mode`
    /// allow may open it; it belongs to root. Each command takes `delay` longer.
    ///
    /// # Errors
    /// If this machine has no /dev/fuse, or this user may not mount.
    pub fn start(upstream: &Path, mode: u16, delay: Duration) -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("tpmrm-").tempdir()?;
        let (work, jobs) = channel();
        let clients = Arc::new(Mutex::new(HashMap::new()));
        let (spaces, answers) = (Spaces::new(upstream.to_path_buf()), Arc::clone(&clients));
        thread::spawn(move || serve(spaces, &jobs, &answers, delay));
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName("tpmrm0".into()),
            MountOption::DefaultPermissions,
        ];
        // Others can be let in by root only.
        if rustix::process::geteuid().is_root() {
            config.acl = SessionACL::All;
        }
        let device = Files {
            mode,
            work,
            clients,
            opened: AtomicU64::new(0),
        };
        let session = spawn_mount(device, dir.path(), &config)?;
        Ok(Self {
            session: Some(session),
            dir,
        })
    }

    /// The device file; its name is `tpmrm0`, as in /dev.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("tpmrm0")
    }

    /// The address in keybond's notation, `device:/…`.
    pub fn address(&self) -> String {
        format!("device:{}", self.path().display())
    }
}

impl Drop for Tpmrm0 {
    fn drop(&mut self) {
        // Ends its thread as well, once the last client has closed the file.
        drop(self.session.take());
    }
}

/// Where one client's conversation is.
#[derive(Default)]
enum Client {
    #[default]
    Idle,
    /// The TPM works; these are to be told when it is done.
    Working(Vec<PollNotifier>),
    /// The answer, as far as it was not read yet; `None` if the way to the TPM failed.
    Done(Option<Vec<u8>>),
}

type Clients = Mutex<HashMap<u64, Client>>;

enum Work {
    Run(u64, Vec<u8>),
    Close(u64),
}

fn serve(mut spaces: Spaces, jobs: &Receiver<Work>, clients: &Clients, delay: Duration) {
    while let Ok(work) = jobs.recv() {
        match work {
            Work::Close(client) => spaces.close(client),
            Work::Run(client, command) => {
                thread::sleep(delay);
                let answer = spaces.run(client, &command).ok();
                let before = lock(clients).insert(client, Client::Done(answer));
                if let Some(Client::Working(waiting)) = before {
                    for notifier in waiting {
                        // The poll may have ended already.
                        let _ = notifier.notify();
                    }
                }
            }
        }
    }
}

struct Files {
    mode: u16,
    work: Sender<Work>,
    clients: Arc<Clients>,
    opened: AtomicU64,
}

impl Files {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let file = inode == FILE;
        FileAttr {
            ino: inode,
            size: 0,
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if file {
                FileType::RegularFile
            } else {
                FileType::Directory
            },
            perm: if file { self.mode } else { 0o755 },
            nlink: 1,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            flags: 0,
            blksize: 4096,
        }
    }
}

impl Filesystem for Files {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent == INodeNo::ROOT && name == "tpmrm0" {
            reply.entry(&TTL, &self.attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &self.attributes(inode));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let client = self.opened.fetch_add(1, Ordering::SeqCst);
        lock(&self.clients).insert(client, Client::Idle);
        let flags =
            FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_NONSEEKABLE | FopenFlags::FOPEN_STREAM;
        reply.opened(FileHandle(client), flags);
    }

    #[allow(clippy::too_many_arguments, reason = "the trait's")]
    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        client: FileHandle,
        _: u64,
        command: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let mut clients = lock(&self.clients);
        if !matches!(clients.get(&client.0), Some(Client::Idle)) {
            return reply.error(Errno::EBUSY);
        }
        if command.len() < 10 || command[2..6] != (command.len() as u32).to_be_bytes() {
            return reply.error(Errno::EINVAL);
        }
        clients.insert(client.0, Client::Working(Vec::new()));
        match self.work.send(Work::Run(client.0, command.to_vec())) {
            Ok(()) => reply.written(command.len() as u32),
            Err(_) => reply.error(Errno::EIO),
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the trait's")]
    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        client: FileHandle,
        _: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut clients = lock(&self.clients);
        match clients.remove(&client.0).unwrap_or_default() {
            Client::Idle => {
                clients.insert(client.0, Client::Idle);
                reply.data(&[]);
            }
            working @ Client::Working(_) => {
                clients.insert(client.0, working);
                reply.error(Errno::EAGAIN);
            }
            Client::Done(None) => {
                clients.insert(client.0, Client::Idle);
                reply.error(Errno::EIO);
            }
            Client::Done(Some(mut answer)) => {
                let rest = answer.split_off(answer.len().min(size as usize));
                let next = if rest.is_empty() {
                    Client::Idle
                } else {
                    Client::Done(Some(rest))
                };
                clients.insert(client.0, next);
                reply.data(&answer);
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "the trait's")]
    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        client: FileHandle,
        notifier: PollNotifier,
        _: PollEvents,
        flags: PollFlags,
        reply: ReplyPoll,
    ) {
        let ready = match lock(&self.clients).entry(client.0).or_default() {
            Client::Idle => PollEvents::POLLOUT | PollEvents::POLLWRNORM,
            Client::Done(_) => PollEvents::POLLIN | PollEvents::POLLRDNORM,
            Client::Working(waiting) => {
                if flags.contains(PollFlags::FUSE_POLL_SCHEDULE_NOTIFY) {
                    waiting.push(notifier);
                }
                PollEvents::empty()
            }
        };
        reply.poll(ready);
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        client: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        lock(&self.clients).remove(&client.0);
        match self.work.send(Work::Close(client.0)) {
            Ok(()) => reply.ok(),
            Err(_) => reply.error(Errno::EIO),
        }
    }
}

fn lock(clients: &Clients) -> MutexGuard<'_, HashMap<u64, Client>> {
    clients.lock().unwrap_or_else(PoisonError::into_inner)
}
