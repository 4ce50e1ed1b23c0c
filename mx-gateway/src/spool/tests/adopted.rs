//! The spool of a process that is gone.

use super::cut::file;
use super::sick::SmallDisk;
use super::*;

const MESSAGES: [&str; 3] = ["one", "two", "tri"];

/// A spool as a dead process leaves it: messages, a dead letter, a file that was set aside, and something
/// that was not finished.
async fn leave(directory: &Path) {
    let (spool, _) = open(directory).await;
    for id in MESSAGES {
        commit(&spool, id, id.as_bytes()).await;
    }
    spool.append("two", &[delivered(0)], true).await.unwrap();
    commit(&spool, "letter", b"x").await;
    spool.bury("letter", &[failed(0, Fate::Dead), failed(1, Fate::Dead)]).await.unwrap();
    drop(spool);
    fs::write(directory.join("corrupt/bad"), "bad").unwrap();
    fs::write(directory.join("tmp/half"), "mailshift").unwrap();
}

/// Asserts that everything is here, once, and nothing is there.
async fn all_is_here(here: &Path, there: &Path) {
    let (spool, found) = open(here).await;
    let mut ids: Vec<&str> = found.iter().map(Stored::id).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["one", "tri", "two"]);
    let two = found.iter().find(|stored| stored.id() == "two").unwrap();
    assert_eq!(two.recipients[0].state, State::Delivered);
    for id in MESSAGES {
        assert!(octets_of(&spool.content(id).await.unwrap()).await.ends_with(id.as_bytes()));
    }
    assert_eq!(spool.dead().await.unwrap().len(), 1);
    assert!(here.join("corrupt/bad").exists());
    for place in ["tmp", "messages", "dead", "corrupt"] {
        assert_eq!(names(there, place), [""; 0], "{place}");
    }
    assert_eq!(names(here, "tmp"), [""; 0]);
}

#[tokio::test]
async fn all_that_a_dead_process_left_is_adopted_and_none_of_a_living_one() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    leave(there.path()).await;
    let (alive, _) = open(there.path()).await;
    let (spool, _) = open(here.path()).await;
    let refused = spool.adopt(there.path(), |_| ()).await;
    assert!(matches!(refused, Err(SpoolError::InUse(_))), "{refused:?}");
    let refused = spool.adopt(here.path(), |_| ()).await;
    assert!(matches!(refused, Err(SpoolError::Ours(_))), "nor itself: {refused:?}");
    drop(alive);
    let adopted = spool.adopt(there.path(), |_| ()).await.unwrap();
    assert!(adopted.failed.is_none(), "{adopted:?}");
    assert_eq!((adopted.messages.len(), adopted.dead), (3, 1));
    // They are messages like all others.
    let at = spool.append("one", &[Record::Frozen], true).await.unwrap();
    let mut one = adopted.messages.into_iter().find(|stored| stored.id() == "one").unwrap();
    one.apply(&Record::Frozen, at);
    assert_eq!(spool.read("one").await.unwrap(), one);
    drop(spool);
    all_is_here(here.path(), there.path()).await;
}

#[tokio::test]
async fn a_directory_without_a_spool_is_not_made_one() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (spool, _) = open(here.path()).await;
    for path in [there.path().to_owned(), there.path().join("none")] {
        let refused = spool.adopt(&path, |_| ()).await;
        assert!(matches!(refused, Err(SpoolError::NoSpool(_))), "{refused:?}");
    }
    assert_eq!(fs::read_dir(there.path()).unwrap().count(), 0);
}

/// Another file system than the one of temporary files.
enum Elsewhere {
    Mounted(SmallDisk),
    SharedMemory(TempDir),
}

impl Elsewhere {
    fn new() -> Self {
        let mounted = SmallDisk::mount("4m").map(Self::Mounted);
        mounted.unwrap_or_else(|| Self::SharedMemory(tempfile::tempdir_in("/dev/shm").unwrap()))
    }

    fn path(&self) -> &Path {
        match self {
            Self::Mounted(disk) => disk.path(),
            Self::SharedMemory(directory) => directory.path(),
        }
    }
}

#[tokio::test]
async fn a_spool_on_another_file_system_is_copied_and_then_removed() {
    let (here, there) = (tempfile::tempdir().unwrap(), Elsewhere::new());
    leave(there.path()).await;
    let moved = fs::rename(there.path().join("lock"), here.path().join("lock"));
    assert_eq!(moved.unwrap_err().kind(), std::io::ErrorKind::CrossesDevices);
    let (spool, _) = open(here.path()).await;
    let adopted = spool.adopt(there.path(), |_| ()).await.unwrap();
    assert_eq!((adopted.messages.len(), adopted.dead), (3, 1));
    drop(spool);
    all_is_here(here.path(), there.path()).await;
}

/// Each sync is a moment at which the disk can fail, or the machine.
#[tokio::test]
async fn an_adoption_that_ends_at_any_step_loses_nothing_and_is_gone_on_with() {
    for across in [false, true] {
        for good in 0.. {
            let here = tempfile::tempdir().unwrap();
            let (beside, elsewhere) = (tempfile::tempdir().unwrap(), Elsewhere::new());
            let there = if across { elsewhere.path() } else { beside.path() };
            leave(there).await;
            drop(open(here.path()).await);
            let failing = super::sick::Failing::with(rustix::io::Errno::IO);
            let (spool, _) = failing.open(here.path()).await;
            failing.after(good);
            let adopted = spool.adopt(there, |_| ()).await;
            drop(spool);
            let done = matches!(&adopted, Ok(adopted) if adopted.failed.is_none());
            for id in MESSAGES {
                let is_in = |base: &Path| base.join("messages").join(id).exists();
                assert!(is_in(here.path()) || is_in(there), "{id} after {good} syncs");
            }
            let (spool, found) = open(here.path()).await;
            let again = spool.adopt(there, |_| ()).await.unwrap();
            assert!(again.failed.is_none(), "{again:?}");
            assert_eq!(found.len() + again.messages.len(), 3, "after {good} syncs");
            drop(spool);
            all_is_here(here.path(), there).await;
            if done {
                assert!(good > 5);
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_message_in_both_spools_is_one_message_as_it_is_known_here() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    leave(there.path()).await;
    drop(open(here.path()).await);
    fs::copy(there.path().join("messages/one"), here.path().join("messages/one")).unwrap();
    let (spool, found) = open(here.path()).await;
    assert_eq!(found.len(), 1);
    spool.append("one", &[delivered(0)], true).await.unwrap();
    let adopted = spool.adopt(there.path(), |_| ()).await.unwrap();
    let ids: Vec<&str> = adopted.messages.iter().map(Stored::id).collect();
    assert_eq!(ids, ["tri", "two"]);
    assert_eq!(spool.read("one").await.unwrap().recipients[0].state, State::Delivered);
    assert_eq!(names(here.path(), "corrupt"), ["bad"]);
    drop(spool);
    all_is_here(here.path(), there.path()).await;
}

#[tokio::test]
async fn what_happened_to_it_in_the_other_spool_since_is_set_aside() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    leave(there.path()).await;
    drop(open(here.path()).await);
    fs::copy(there.path().join("messages/one"), here.path().join("messages/one")).unwrap();
    fs::write(there.path().join("messages/one"), file("one", &[delivered(1)]).0).unwrap();
    let (spool, _) = open(here.path()).await;
    let adopted = spool.adopt(there.path(), |_| ()).await.unwrap();
    assert_eq!(adopted.messages.len(), 2);
    assert_eq!(names(here.path(), "corrupt"), ["bad", "one"]);
    assert_eq!(spool.read("one").await.unwrap().recipients, two());
    drop(spool);
    all_is_here(here.path(), there.path()).await;
}
