//! The table's rows as both databases return them, and the statements that are the same in both.

use crate::ownership::Epoch;
use crate::ownership::map::{
    AccountRow, AliasRow, Change, Claim, DomainRow, FlippedAt, MAX_REMOVED, Tables,
};

use super::{Cursor, Node, Page, Spooled, StoreError};

/// When the oldest message on a node's disk came, in seconds of the Unix epoch.
pub(super) fn oldest(spooled: Spooled) -> Option<f64> {
    let seconds = spooled.oldest.and_then(|seconds| u32::try_from(seconds).ok());
    seconds.map(f64::from)
}

/// Most changes read at once.
pub(super) const PAGE: i64 = 10_000;

pub(super) const NEWEST: &str = "SELECT epoch, kind, name, CAST(nonce AS text) AS nonce FROM changes \
                                 ORDER BY epoch DESC, kind DESC, name DESC LIMIT 1";
pub(super) const DATABASE: &str = "SELECT id FROM database";
pub(super) const COUNT_ACCOUNTS: &str = "SELECT count(*) FROM accounts";
pub(super) const COUNT_ALIASES: &str = "SELECT count(*) FROM aliases";
pub(super) const DOMAINS: &str =
    "SELECT domain, epoch, default_owner, subaddress_delimiter FROM domains";
pub(super) const ALIASES: &str = "SELECT alias, epoch, account, login FROM aliases";
/// Deletions among the newest changes, in their order; `$1` of these are looked at.
pub(super) const REMOVED: &str = "SELECT epoch, kind, name FROM (SELECT epoch, kind, name, deleted \
     FROM changes ORDER BY epoch DESC, kind DESC, name DESC LIMIT $1) newest \
     WHERE deleted ORDER BY epoch, kind, name";

/// All accounts; `$flipped_at` is `flipped_at` in seconds of the Unix epoch.
macro_rules! accounts {
    ($flipped_at:expr) => {
        concat!(
            "SELECT account, epoch, owner, state = 'held' AS held, login, ",
            $flipped_at,
            " AS flipped_at FROM accounts"
        )
    };
}
pub(super) use accounts;

/// When the account that a row of `changes` (as `c`) is about was flipped: as its row has it now, since
/// changes do not say. A later change of the row follows on this one, and says it again.
macro_rules! flipped_at {
    ($flipped_at:expr) => {
        concat!(
            "(SELECT ",
            $flipped_at,
            " FROM accounts WHERE c.kind = 'account' AND account = c.name) AS flipped_at"
        )
    };
}
pub(super) use flipped_at;

/// What a row of `changes` (as `c`) has made of its row, as [`Basis`] says it.
macro_rules! made {
    () => {
        "CASE WHEN c.deleted THEN '' WHEN c.kind = 'account' THEN c.new_owner || ' ' || c.new_state \
         WHEN c.kind = 'alias' THEN c.new_account ELSE coalesce(c.new_default_owner, '') END"
    };
}
pub(super) use made;

#[derive(sqlx::FromRow)]
pub(super) struct CursorRow {
    epoch: i64,
    kind: String,
    name: String,
    nonce: String,
}

#[derive(sqlx::FromRow)]
pub(super) struct DomainsRow {
    domain: String,
    epoch: i64,
    default_owner: Option<String>,
    subaddress_delimiter: Option<String>,
}

#[derive(sqlx::FromRow)]
pub(super) struct AccountsRow {
    account: String,
    epoch: i64,
    owner: String,
    held: bool,
    login: bool,
    flipped_at: Option<i64>,
}

/// A row that was deleted.
#[derive(sqlx::FromRow)]
pub(super) struct RemovedRow {
    epoch: i64,
    kind: String,
    name: String,
}

/// A change that a claim rests on, as it is looked for in `changes`.
pub(super) struct Basis<'a> {
    pub(super) epoch: i64,
    pub(super) kind: &'static str,
    pub(super) name: &'a str,
    pub(super) made: String,
}

#[derive(sqlx::FromRow)]
pub(super) struct AliasesRow {
    alias: String,
    epoch: i64,
    account: String,
    login: bool,
}

/// A row of `changes` beside the answers whether the cursor and the lease are still there. All but these
/// are NULL when there is no change to read.
#[derive(sqlx::FromRow)]
pub(super) struct ChangeRow {
    intact: bool,
    granted: bool,
    epoch: Option<i64>,
    kind: Option<String>,
    name: Option<String>,
    nonce: Option<String>,
    deleted: Option<bool>,
    new_owner: Option<String>,
    new_state: Option<String>,
    new_account: Option<String>,
    new_login: Option<bool>,
    new_default_owner: Option<String>,
    new_subaddress_delimiter: Option<String>,
    flipped_at: Option<i64>,
}

impl DomainsRow {
    pub(super) fn put(self, tables: &mut Tables) {
        let epoch = epoch_of(self.epoch);
        let row = domain_row(self.default_owner, self.subaddress_delimiter);
        tables.set(epoch, Change::Domain(self.domain.into(), Some(row)));
    }
}

impl AccountsRow {
    pub(super) fn put(self, tables: &mut Tables) {
        let row = AccountRow {
            owner: self.owner.into(),
            held: self.held,
            login: self.login,
            flipped: self.flipped_at.and_then(FlippedAt::of_seconds),
        };
        tables.set(epoch_of(self.epoch), Change::Account(self.account.into(), Some(row)));
    }
}

impl AliasesRow {
    pub(super) fn put(self, tables: &mut Tables) {
        let row = AliasRow { account: self.account.into(), login: self.login };
        tables.set(epoch_of(self.epoch), Change::Alias(self.alias.into(), Some(row)));
    }
}

impl RemovedRow {
    /// How many changes are looked at.
    pub(super) fn limit() -> i64 {
        i64::try_from(MAX_REMOVED).unwrap_or(i64::MAX)
    }

    /// To be put before the rows themselves: some are there again.
    pub(super) fn put(self, tables: &mut Tables) {
        let change = match self.kind.as_str() {
            "account" => Change::Account(self.name.into(), None),
            "alias" => Change::Alias(self.name.into(), None),
            _ => return,
        };
        tables.set(epoch_of(self.epoch), change);
    }
}

impl<'a> Basis<'a> {
    pub(super) fn of((epoch, change): &'a (Epoch, Change)) -> Self {
        let (kind, name, made) = match change {
            Change::Account(name, row) => {
                let made = row.as_ref().map(|row| {
                    format!("{} {}", row.owner, if row.held { "held" } else { "active" })
                });
                ("account", name, made)
            }
            Change::Alias(name, row) => {
                ("alias", name, row.as_ref().map(|row| row.account.to_string()))
            }
            Change::Domain(name, row) => {
                let owner = row.as_ref().and_then(|row| row.default_owner.as_ref());
                ("domain", name, owner.map(ToString::to_string))
            }
        };
        Self { epoch: signed(*epoch), kind, name, made: made.unwrap_or_default() }
    }
}

impl CursorRow {
    /// The newest change of a database as a place to go on from; the beginning where there is none.
    pub(super) fn cursor(newest: Option<Self>, database: String) -> Cursor {
        let Some(row) = newest else { return Cursor { database, ..Cursor::default() } };
        let Self { epoch, kind, name, nonce } = row;
        Cursor { database, epoch: epoch_of(epoch), kind, name, nonce: Some(nonce) }
    }
}

impl ChangeRow {
    /// The change and its place; `None` for the row that only says whether the cursor is there.
    fn read(self, database: &str) -> Result<Option<(Cursor, Change)>, StoreError> {
        let (Some(epoch), Some(kind), Some(name)) = (self.epoch, self.kind, self.name) else {
            return Ok(None);
        };
        let epoch = epoch_of(epoch);
        let lacks = |what| StoreError::Unreadable { epoch, what };
        let deleted = self.deleted.unwrap_or(false);
        let key: Box<str> = name.as_str().into();
        let change = match kind.as_str() {
            "account" if deleted => Change::Account(key, None),
            "account" => {
                let held = match self.new_state.as_deref() {
                    Some("active") => false,
                    Some("held") => true,
                    Some(_) | None => return Err(lacks("an account in an unknown state")),
                };
                let owner = self.new_owner.ok_or(lacks("an account without owner"))?.into();
                let login = self.new_login.unwrap_or(true);
                let flipped = self.flipped_at.and_then(FlippedAt::of_seconds);
                Change::Account(key, Some(AccountRow { owner, held, login, flipped }))
            }
            "alias" if deleted => Change::Alias(key, None),
            "alias" => {
                let account = self.new_account.ok_or(lacks("an alias without account"))?.into();
                let login = self.new_login.unwrap_or(true);
                Change::Alias(key, Some(AliasRow { account, login }))
            }
            "domain" if deleted => Change::Domain(key, None),
            "domain" => {
                let row = domain_row(self.new_default_owner, self.new_subaddress_delimiter);
                Change::Domain(key, Some(row))
            }
            _ => return Err(lacks("a change of an unknown kind")),
        };
        let database = database.to_owned();
        Ok(Some((Cursor { database, epoch, kind, name, nonce: self.nonce }, change)))
    }
}

/// Reads what a store's statement returned for the changes after `cursor`.
pub(super) fn page_of(rows: Vec<ChangeRow>, cursor: &Cursor) -> Result<Page, StoreError> {
    let more = i64::try_from(rows.len()).is_ok_and(|count| count >= PAGE);
    let mut page = Page { changes: Vec::new(), cursor: cursor.clone(), more };
    for row in rows {
        if !row.intact {
            return Err(StoreError::HistoryLost);
        }
        if !row.granted {
            return Err(StoreError::LeaseLost);
        }
        if let Some((place, change)) = row.read(&cursor.database)? {
            page.changes.push((place.epoch, change));
            page.cursor = place;
        }
    }
    Ok(page)
}

/// Why a node's own row cannot be written to, from (is it of this process, is it forgotten).
pub(super) fn evicted(row: Option<(bool, bool)>) -> Option<StoreError> {
    match row {
        None => Some(StoreError::Gone),
        Some((false, _)) => Some(StoreError::NameTaken),
        Some((true, true)) => Some(StoreError::Forgotten),
        Some((true, false)) => None,
    }
}

/// Why a name is disputed, for the operator who has to decide: by which change, now lost, it was where.
pub(super) fn reason(node: &Node, claim: &Claim, change: Epoch) -> String {
    let Claim { owner, held, alias_of, .. } = claim;
    let did = if *held { "knew it held" } else { "has served it" };
    let alias = alias_of.as_ref().map(|of| format!(", as an alias of {of},")).unwrap_or_default();
    format!(
        "history lost: {}/{} {did} at {owner}{alias} by change {change}, which is not in the table any more",
        node.name, node.service
    )
}

fn domain_row(default_owner: Option<String>, delimiter: Option<String>) -> DomainRow {
    DomainRow {
        default_owner: default_owner.map(Into::into),
        subaddress_delimiter: delimiter.unwrap_or_default().into(),
        ..DomainRow::default()
    }
}

pub(super) fn epoch_of(number: i64) -> Epoch {
    Epoch::try_from(number).unwrap_or_default()
}

pub(super) fn signed(epoch: Epoch) -> i64 {
    i64::try_from(epoch).unwrap_or(i64::MAX)
}

pub(super) fn number(count: i64) -> usize {
    usize::try_from(count).unwrap_or_default()
}
