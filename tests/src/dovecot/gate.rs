//! Logins that wait at Dovecot for their verdict until a test lets them go.
//!
//! A checkpassword program stands before the user file. It approves nobody, so that the user file
//! decides, but it takes its time: as long as a file with the account's name is there. It first says that
//! a login has come.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use crate::patience::until;
use crate::place::Place;

/// Descriptor 3 has `name NUL password NUL`. Status 1: not this one's user, ask the next.
const SCRIPT: &str = r#"#!/bin/sh
PATH=/usr/bin:/bin
directory=${0%/*}
name=$(tr '\000' '\n' <&3 | head -n 1)
[ -e "$directory/held/$name" ] || exit 1
echo $$ >"$directory/arrived/$name.$$"
while [ -e "$directory/held/$name" ]; do
    sleep 0.02
done
exit 1
"#;

/// Logins of one account are held back while this value lives.
#[derive(Debug)]
pub struct HeldLogin {
    account: String,
    held: PathBuf,
    arrived: PathBuf,
}

pub(super) fn set_up(place: &Place) -> Result<()> {
    place.directory("gate", 0o755, None)?;
    place.directory("gate/held", 0o755, None)?;
    // The program runs as a user of Dovecot's.
    place.directory("gate/arrived", 0o777, None)?;
    place.write("gate/checkpassword", SCRIPT, 0o755, None).map(drop)
}

pub(super) fn script(place: &Place) -> String {
    place.join("gate/checkpassword").to_string_lossy().into_owned()
}

impl HeldLogin {
    pub(super) fn new(place: &Place, account: &str) -> Result<Self> {
        let held = place.join("gate/held").join(account);
        fs::write(&held, "")?;
        Ok(Self { account: account.to_owned(), held, arrived: place.join("gate/arrived") })
    }

    /// Logins that have come to the gate so far.
    pub fn count(&self) -> usize {
        let prefix = format!("{}.", self.account);
        let entries = fs::read_dir(&self.arrived).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).count()
    }

    /// Waits until a login is there: the server has the credentials and has said neither yes nor no.
    ///
    /// # Errors
    ///
    /// None comes.
    pub async fn arrived(&self) -> Result<()> {
        until("a login at the gate", || (self.count() > 0).then_some(())).await
    }

    /// Lets them go.
    pub fn release(self) {}
}

impl Drop for HeldLogin {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.held);
    }
}
