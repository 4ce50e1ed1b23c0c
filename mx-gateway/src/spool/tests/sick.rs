//! Disks that are full or broken.

use std::io;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::io::Errno;

use super::disk::Depth;
use super::*;

/// A file system of its own in memory.
pub(super) struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None` where this process may not mount any.
    pub(super) fn mount(size: &str) -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(directory.path());
        let mounted = mount.output().is_ok_and(|output| output.status.success());
        mounted.then_some(Self(directory))
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// A disk that fails when it is told to.
#[derive(Clone)]
pub(super) struct Failing(Arc<Plan>);

struct Plan {
    /// Syncs that succeed before those that fail.
    good: AtomicUsize,
    /// Syncs that were asked for.
    asked: AtomicUsize,
    errno: Errno,
}

impl Failing {
    pub(super) fn with(errno: Errno) -> Self {
        let (good, asked) = (AtomicUsize::new(usize::MAX), AtomicUsize::new(0));
        Self(Arc::new(Plan { good, asked, errno }))
    }

    pub(super) fn after(&self, good: usize) {
        self.0.good.store(good, Ordering::SeqCst);
    }

    fn asked(&self) -> usize {
        self.0.asked.load(Ordering::SeqCst)
    }

    fn sync(&self) -> disk::Sync {
        let plan = Arc::clone(&self.0);
        Arc::new(move |file: &fs::File, depth: Depth| {
            plan.asked.fetch_add(1, Ordering::SeqCst);
            let less =
                |good: usize| if good == usize::MAX { Some(good) } else { good.checked_sub(1) };
            if plan.good.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_err() {
                return Err(io::Error::from(plan.errno));
            }
            disk::sync(file, depth)
        })
    }

    pub(super) async fn open(&self, directory: &Path) -> (Spool, Vec<Stored>) {
        Spool::open_with(directory, RESERVE, self.sync()).await.unwrap()
    }
}

async fn try_commit(spool: &Spool, id: &str, octets: &[u8]) -> Result<Stored, SpoolError> {
    let (_kept, body) = message(octets).await;
    spool.commit(&envelope(id), &two(), HEADER, &body).await
}

fn fault(health: &Health) -> Option<Fault> {
    match health {
        Health::Well => None,
        Health::Unhealthy(trouble) => Some(trouble.fault),
    }
}

#[tokio::test]
async fn a_full_disk_takes_nothing_keeps_what_it_has_and_recovers_by_itself() {
    let large = vec![b'x'; 1_500_000];
    let small_disk = SmallDisk::mount("1m");
    let directory = tempfile::tempdir().unwrap();
    let failing = Failing::with(Errno::NOSPC);
    let path = small_disk.as_ref().map_or(directory.path(), SmallDisk::path);
    let (spool, _) = failing.open(path).await;
    let first = commit(&spool, "first", b"x").await;
    // Where nothing can be mounted, the sync says what a full disk says.
    if small_disk.is_none() {
        failing.after(0);
    }
    let refused = try_commit(&spool, "second", &large).await;
    assert_eq!(refused.unwrap_err().fault(), Some(Fault::NoSpace));
    assert_eq!(fault(&spool.health()), Some(Fault::NoSpace));
    assert!(!spool.has_room_for(1));
    assert_eq!(names(path, "tmp"), [""; 0], "what was half written is removed");
    assert_eq!(names(path, "messages"), ["first"]);
    failing.after(usize::MAX);
    spool.0.disk.condition.hasten();
    commit(&spool, "third", b"x").await;
    assert_eq!(spool.health(), Health::Well);
    assert_eq!(spool.read("first").await.unwrap(), first);
}

#[tokio::test]
async fn a_record_that_did_not_fit_leaves_nothing_behind_which_later_ones_would_be_lost() {
    let Some(small_disk) = SmallDisk::mount("64k") else {
        // The same by a sync that fails: what was written is there, and must go.
        return a_record_that_was_not_synced_is_written_again().await;
    };
    let (spool, _) = open(small_disk.path()).await;
    commit(&spool, "one", b"x").await;
    let long = Record::Tried { why: "x".repeat(40_000).into() };
    spool.append("one", std::slice::from_ref(&long), false).await.unwrap();
    let refused = spool.append("one", std::slice::from_ref(&long), false).await;
    assert_eq!(refused.unwrap_err().fault(), Some(Fault::NoSpace));
    assert_eq!(fault(&spool.health()), Some(Fault::NoSpace));
    spool.append("one", &[delivered(0)], true).await.unwrap();
    drop(spool);
    let (_spool, found) = open(small_disk.path()).await;
    assert_eq!((found[0].progress.attempts, &found[0].recipients[0].state), (1, &State::Delivered));
    assert_eq!(names(small_disk.path(), "corrupt"), [""; 0]);
}

#[tokio::test]
async fn causes_are_told_apart() {
    for (errno, expected) in [
        (Errno::NOSPC, Fault::NoSpace),
        (Errno::DQUOT, Fault::Quota),
        (Errno::IO, Fault::Device),
        (Errno::ROFS, Fault::ReadOnly),
        (Errno::PERM, Fault::Other),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let failing = Failing::with(errno);
        let (spool, _) = failing.open(directory.path()).await;
        failing.after(0);
        let refused = try_commit(&spool, "one", b"x").await.unwrap_err();
        assert_eq!(refused.fault(), Some(expected));
        assert_eq!(fault(&spool.health()), Some(expected));
    }
}

#[tokio::test]
async fn a_sync_that_failed_is_not_asked_for_again_on_that_file() {
    let directory = tempfile::tempdir().unwrap();
    let failing = Failing::with(Errno::IO);
    let (spool, _) = failing.open(directory.path()).await;
    failing.after(0);
    let before = failing.asked();
    try_commit(&spool, "one", b"x").await.unwrap_err();
    assert_eq!(failing.asked(), before + 1);
    let refused = try_commit(&spool, "one", b"x").await.unwrap_err();
    assert!(matches!(refused, SpoolError::Unhealthy(_)), "{refused}");
    assert_eq!(failing.asked(), before + 1, "the disk is not tried for every message");
    spool.0.disk.condition.hasten();
    try_commit(&spool, "one", b"x").await.unwrap_err();
    assert_eq!(failing.asked(), before + 2, "one probe");
    failing.after(usize::MAX);
    spool.0.disk.condition.hasten();
    commit(&spool, "one", b"x").await;
}

/// A commit syncs its file, then the directory. After either fails, nothing is kept.
#[tokio::test]
async fn a_message_whose_name_was_not_synced_is_not_kept() {
    for good in 0..2 {
        let directory = tempfile::tempdir().unwrap();
        let failing = Failing::with(Errno::IO);
        let (spool, _) = failing.open(directory.path()).await;
        failing.after(good);
        let refused = try_commit(&spool, "one", b"x").await.unwrap_err();
        assert_eq!(refused.fault(), Some(Fault::Device));
        for place in ["tmp", "messages"] {
            assert_eq!(names(directory.path(), place), [""; 0], "after {good} syncs: {place}");
        }
        let unknown = spool.read("one").await;
        assert!(matches!(unknown, Err(SpoolError::Unknown(_))), "{unknown:?}");
    }
}

async fn a_record_that_was_not_synced_is_written_again() {
    let directory = tempfile::tempdir().unwrap();
    let failing = Failing::with(Errno::IO);
    let (spool, _) = failing.open(directory.path()).await;
    commit(&spool, "one", b"x").await;
    failing.after(0);
    let long = Record::Tried { why: "x".repeat(1_000).into() };
    let refused = spool.append("one", &[delivered(0), long], true).await;
    assert_eq!(refused.unwrap_err().fault(), Some(Fault::Device));
    failing.after(usize::MAX);
    spool.append("one", &[delivered(1)], true).await.unwrap();
    drop(spool);
    let (_spool, found) = open(directory.path()).await;
    let states: Vec<&State> =
        found[0].recipients.iter().map(|recipient| &recipient.state).collect();
    assert_eq!(states, [&State::Waiting, &State::Delivered]);
    assert_eq!(names(directory.path(), "corrupt"), [""; 0]);
}

#[tokio::test]
async fn a_record_whose_sync_failed_is_not_there() {
    a_record_that_was_not_synced_is_written_again().await;
}

#[tokio::test]
async fn asking_for_its_health_is_enough_to_recover() {
    let directory = tempfile::tempdir().unwrap();
    let failing = Failing::with(Errno::IO);
    let (spool, _) = failing.open(directory.path()).await;
    failing.after(0);
    try_commit(&spool, "one", b"x").await.unwrap_err();
    failing.after(usize::MAX);
    assert_ne!(spool.health(), Health::Well);
    spool.0.disk.condition.hasten();
    while spool.health() != Health::Well {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(names(directory.path(), "tmp"), [""; 0]);
}

#[tokio::test]
async fn there_is_room_for_what_fits_beside_the_reserve() {
    let small_disk = SmallDisk::mount("1m,nr_inodes=4096");
    let directory = tempfile::tempdir().unwrap();
    let path = small_disk.as_ref().map_or(directory.path(), SmallDisk::path);
    let disk = rustix::fs::statvfs(path).unwrap();
    let free = disk.f_bavail * disk.f_frsize;
    let (spool, _) = Spool::open(path, free / 2).await.unwrap();
    assert!(spool.has_room_for(free / 4));
    assert!(!spool.has_room_for(free / 4 * 3));
    assert!(!spool.has_room_for(u64::MAX));
    let (index, octets) = (Arc::clone(&spool.0), free / 4);
    let draft = index.disk.draft("large", octets).unwrap();
    assert!(!spool.has_room_for(free / 4 + free / 8), "what is being written counts");
    drop(draft);
    assert!(spool.has_room_for(free / 4 + free / 8));
    if small_disk.is_some() {
        for file in 0..3_500 {
            fs::write(path.join(file.to_string()), "").unwrap();
        }
        assert!(!spool.has_room_for(1), "hardly any inodes are left");
    }
}

#[tokio::test]
async fn of_a_commit_that_nobody_waits_for_any_more_nothing_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let (entered, mut enters) = tokio::sync::mpsc::unbounded_channel();
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Mutex::new(released);
    // The disk takes its time over each message, until it is told to go on.
    let slow: disk::Sync = Arc::new(move |file: &fs::File, depth: Depth| {
        if !file.metadata()?.is_dir() {
            let _ = entered.send(());
            let _ = lock(&released).recv();
        }
        disk::sync(file, depth)
    });
    let (spool, _) = Spool::open_with(directory.path(), RESERVE, slow).await.unwrap();
    let (_kept, body) = message(&vec![b'x'; 200_000]).await;
    {
        let envelope = envelope("one");
        let recipients = two();
        let mut commit = Box::pin(spool.commit(&envelope, &recipients, HEADER, &body));
        tokio::select! {
            _ = &mut commit => panic!("the disk is not so far"),
            _ = enters.recv() => {}
        }
    }
    // From here on it is quick.
    drop(release);
    // The id is free as soon as what was under way has come to its end.
    let again = loop {
        match spool.commit(&envelope("one"), &two(), HEADER, &body).await {
            Ok(again) => break again,
            Err(SpoolError::Id(_)) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(names(directory.path(), "messages"), ["one"]);
    drop(spool);
    assert_eq!(open(directory.path()).await.1, [again]);
}
