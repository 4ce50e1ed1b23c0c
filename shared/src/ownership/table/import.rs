//! Accounts and aliases from a CSV file, in one transaction: all of it or nothing.
//!
//! Columns by their names in the first line: `account`, and where wanted `owner`, `login`, `aliases`
//! (separated by blanks) and `note`. A row that is there already with the same values is passed over; one
//! with other values is a conflict, because an import never flips. Nor may it in silence: without a row an
//! account lives at its domain's default owner, so a row with another one moves it ([`Moves`]).

use std::collections::{BTreeSet, HashMap};
use std::io::Read;

use serde::{Deserialize, Serialize};
use sqlx::{Postgres, Sqlite, Transaction};

use super::flip::{require_owner_sqlite, sign_postgres, sign_sqlite};
use super::{Table, TableError};
use crate::backend::BackendName;

/// Accounts without a row whose domain's default owner is not the file's.
const SQLITE_WOULD_MOVE: &str = "SELECT r.account || ' from ' || d.default_owner || ' to ' || r.owner \
     FROM (SELECT value ->> 'account' AS account, value ->> 'owner' AS owner FROM json_each($1)) r \
     JOIN domains d ON instr(r.account, '@') AND d.domain \
       = substr(r.account, length(rtrim(r.account, replace(r.account, '@', ''))) + 1) \
     WHERE d.default_owner <> r.owner \
       AND NOT EXISTS (SELECT 1 FROM accounts a WHERE a.account = r.account)";
/// Rows sent in one statement.
const BATCH: usize = 20_000;

/// One account to import, in canonical form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImportRow {
    /// Its name.
    pub account: String,
    /// Its owner.
    pub owner: String,
    /// Whether it takes logins.
    pub login: bool,
    /// Names that lead to it.
    #[serde(skip)]
    pub aliases: Vec<String>,
    /// An operator's words.
    pub note: Option<String>,
}

/// Whether an import may move accounts that live at their domain's default owner for want of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moves {
    /// They are named, and nothing is imported.
    Refused,
    /// They are flipped by it, and that is meant.
    Meant,
}

/// What is wrong with a line of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Its number; 0 when it is the file itself.
    pub line: u64,
    /// What is wrong.
    pub what: String,
}

/// What an import added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Imported {
    /// Accounts that were not there.
    pub accounts: u64,
    /// Aliases that were not there.
    pub aliases: u64,
    /// Rows of either kind that were there with the same values.
    pub there: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    account: String,
    owner: Option<String>,
    login: Option<String>,
    aliases: Option<String>,
    note: Option<String>,
}

#[derive(Serialize)]
struct AliasRow<'a> {
    alias: &'a str,
    account: &'a str,
}

/// Reads a CSV file. `owner` is whose the accounts are where the file does not say.
///
/// # Errors
///
/// Every [`Problem`] of the file.
pub fn read_csv(
    file: impl Read,
    owner: Option<&BackendName>,
) -> Result<Vec<ImportRow>, Vec<Problem>> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(file);
    let header = match reader.headers() {
        Ok(header) => header.clone(),
        Err(error) => return Err(vec![Problem { line: 1, what: error.to_string() }]),
    };
    let (mut rows, mut problems) = (Vec::new(), Vec::new());
    let mut seen: HashMap<String, u64> = HashMap::new();
    for record in reader.records() {
        let position = |position: Option<&csv::Position>| position.map_or(0, csv::Position::line);
        let (number, row) = match record {
            Ok(record) => {
                let line = record.deserialize::<Line>(Some(&header));
                let row = line.map_err(|e| e.to_string()).and_then(|line| line.read(owner));
                (position(record.position()), row)
            }
            Err(error) => (position(error.position()), Err(error.to_string())),
        };
        match row {
            Ok(row) => {
                for name in row.aliases.iter().chain([&row.account]) {
                    if let Some(first) = seen.insert(name.clone(), number) {
                        let what = format!("{name} is in line {first}, too");
                        problems.push(Problem { line: number, what });
                    }
                }
                rows.push(row);
            }
            Err(what) => problems.push(Problem { line: number, what }),
        }
    }
    if problems.is_empty() { Ok(rows) } else { Err(problems) }
}

impl Line {
    fn read(self, default: Option<&BackendName>) -> Result<ImportRow, String> {
        let name = |text: &str| super::canonical(text).map_err(|error| error.to_string());
        let owner = match self.owner.filter(|owner| !owner.is_empty()) {
            Some(owner) => BackendName::parse(&owner)
                .map_err(|owner| format!("{owner:?} is no backend's name"))?
                .to_string(),
            None => default.map(ToString::to_string).ok_or("no owner, here or by --owner")?,
        };
        let login = match self.login.as_deref().unwrap_or_default() {
            "" | "true" | "t" | "yes" | "1" => true,
            "false" | "f" | "no" | "0" => false,
            other => return Err(format!("login is {other:?}, neither true nor false")),
        };
        let aliases = self.aliases.unwrap_or_default();
        Ok(ImportRow {
            account: name(&self.account)?,
            owner,
            login,
            aliases: aliases.split_whitespace().map(name).collect::<Result<_, _>>()?,
            note: self.note.filter(|note| !note.is_empty()),
        })
    }
}

impl Table {
    /// Domains of accounts that have no row in `domains`, at most 20: there, addresses without a row of
    /// their own are refused as foreign, sub-addresses and postmaster among them.
    ///
    /// # Errors
    ///
    /// The database's failure.
    pub async fn domains_without_row(&self) -> Result<Vec<String>, TableError> {
        Ok(match self {
                Self::Postgres(pool) => {
                    sqlx::query_scalar(
                        "SELECT DISTINCT domain_of(account) FROM accounts WHERE strpos(account, '@') > 0 \
                         AND domain_of(account) NOT IN (SELECT domain FROM domains) ORDER BY 1 LIMIT 20",
                    )
                    .fetch_all(pool)
                    .await?
                }
                Self::Sqlite { pool, .. } => {
                    sqlx::query_scalar(
                        "SELECT DISTINCT substr(account, instr(account, '@') + 1) FROM accounts \
                         WHERE instr(account, '@') > 0 AND substr(account, instr(account, '@') + 1) \
                         NOT IN (SELECT domain FROM domains) ORDER BY 1 LIMIT 20",
                    )
                    .fetch_all(pool)
                    .await?
                }
            })
    }

    /// Adds what is not there yet, in one transaction; `actor` goes into the audit.
    ///
    /// # Errors
    ///
    /// A row that is there with other values, one that would move its account unless that is meant, an
    /// owner that a live node could not serve, or what the table refuses.
    pub async fn import(
        &self,
        rows: &[ImportRow],
        moves: Moves,
        actor: &str,
    ) -> Result<Imported, TableError> {
        let owners: BTreeSet<&str> = rows.iter().map(|row| &*row.owner).collect();
        match self {
            Self::Postgres(pool) => {
                let mut transaction = pool.begin().await?;
                sign_postgres(&mut transaction, actor, "accounts import").await?;
                for owner in owners {
                    let check = sqlx::query("SELECT require_owner($1)").bind(owner);
                    check.execute(&mut *transaction).await?;
                }
                let imported = import_postgres(&mut transaction, rows, moves).await?;
                transaction.commit().await?;
                Ok(imported)
            }
            Self::Sqlite { pool, .. } => {
                let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
                for owner in owners {
                    if let Ok(owner) = BackendName::parse(owner) {
                        require_owner_sqlite(&mut transaction, &owner).await?;
                    }
                }
                sign_sqlite(&mut transaction, Some((actor, "accounts import"))).await?;
                let imported = import_sqlite(&mut transaction, rows, moves).await?;
                sign_sqlite(&mut transaction, None).await?;
                transaction.commit().await?;
                Ok(imported)
            }
        }
    }
}

async fn import_postgres(
    transaction: &mut Transaction<'_, Postgres>,
    rows: &[ImportRow],
    moves: Moves,
) -> Result<Imported, TableError> {
    let (mut imported, mut conflicts, mut moved) = (Imported::default(), Vec::new(), Vec::new());
    for batch in rows.chunks(BATCH) {
        let json = json(batch);
        // The former owner of a new row is its domain's default, where that is another one.
        let new: Vec<Option<String>> = sqlx::query_scalar(
            "INSERT INTO accounts (account, owner, login, note) SELECT account, owner, login, note \
             FROM jsonb_to_recordset($1::jsonb) \
               AS r(account text, owner text, login boolean, note text) \
             ON CONFLICT (account) DO NOTHING \
             RETURNING account || ' from ' || former_owner || ' to ' || owner",
        )
        .bind(&json)
        .fetch_all(&mut **transaction)
        .await?;
        let added = new.len() as u64;
        moved.extend(new.into_iter().flatten());
        imported.accounts += added;
        imported.there += batch.len() as u64 - added;
        let differ = sqlx::query_scalar(
            "SELECT format('%s: the table says %s, login %s; the file says %s, login %s', a.account, \
               a.owner, a.login, r.owner, r.login) FROM accounts a JOIN jsonb_to_recordset($1::jsonb) \
               AS r(account text, owner text, login boolean) USING (account) \
             WHERE (a.owner, a.login) IS DISTINCT FROM (r.owner, r.login) ORDER BY a.account",
        );
        conflicts.extend(differ.bind(&json).fetch_all(&mut **transaction).await?);
    }
    for batch in aliases(rows).chunks(BATCH) {
        let json = json(batch);
        let added = sqlx::query(
            "INSERT INTO aliases (alias, account) SELECT alias, account \
             FROM jsonb_to_recordset($1::jsonb) AS r(alias text, account text) \
             ON CONFLICT (alias) DO NOTHING",
        )
        .bind(&json)
        .execute(&mut **transaction)
        .await?
        .rows_affected();
        imported.aliases += added;
        imported.there += batch.len() as u64 - added;
        let differ = sqlx::query_scalar(
            "SELECT format('alias %s: the table says %s, the file says %s', s.alias, s.account, \
               r.account) FROM aliases s JOIN jsonb_to_recordset($1::jsonb) \
               AS r(alias text, account text) USING (alias) \
             WHERE s.account <> r.account ORDER BY s.alias",
        );
        conflicts.extend(differ.bind(&json).fetch_all(&mut **transaction).await?);
    }
    judge(imported, conflicts, moved, moves)
}

async fn import_sqlite(
    transaction: &mut Transaction<'_, Sqlite>,
    rows: &[ImportRow],
    moves: Moves,
) -> Result<Imported, TableError> {
    let (mut imported, mut conflicts, mut moved) = (Imported::default(), Vec::new(), Vec::new());
    for batch in rows.chunks(BATCH) {
        let json = json(batch);
        let would_move = sqlx::query_scalar(SQLITE_WOULD_MOVE);
        moved.extend(would_move.bind(&json).fetch_all(&mut **transaction).await?);
        let added = sqlx::query(
            "INSERT INTO accounts (account, owner, login, note) \
             SELECT value ->> 'account', value ->> 'owner', value ->> 'login', value ->> 'note' \
             FROM json_each($1) WHERE NOT EXISTS \
               (SELECT 1 FROM accounts a WHERE a.account = value ->> 'account')",
        )
        .bind(&json)
        .execute(&mut **transaction)
        .await?
        .rows_affected();
        imported.accounts += added;
        imported.there += batch.len() as u64 - added;
        let differ = sqlx::query_scalar(
            "SELECT a.account || ': the table says ' || a.owner || ', login ' || a.login || \
               '; the file says ' || (value ->> 'owner') || ', login ' || (value ->> 'login') \
             FROM json_each($1) JOIN accounts a ON a.account = value ->> 'account' \
             WHERE a.owner <> value ->> 'owner' OR a.login <> value ->> 'login' ORDER BY a.account",
        );
        conflicts.extend(differ.bind(&json).fetch_all(&mut **transaction).await?);
    }
    for batch in aliases(rows).chunks(BATCH) {
        let json = json(batch);
        let added = sqlx::query(
            "INSERT INTO aliases (alias, account) SELECT value ->> 'alias', value ->> 'account' \
             FROM json_each($1) WHERE NOT EXISTS \
               (SELECT 1 FROM aliases s WHERE s.alias = value ->> 'alias')",
        )
        .bind(&json)
        .execute(&mut **transaction)
        .await?
        .rows_affected();
        imported.aliases += added;
        imported.there += batch.len() as u64 - added;
        let differ = sqlx::query_scalar(
            "SELECT 'alias ' || s.alias || ': the table says ' || s.account || ', the file says ' || \
               (value ->> 'account') FROM json_each($1) JOIN aliases s ON s.alias = value ->> 'alias' \
             WHERE s.account <> value ->> 'account' ORDER BY s.alias",
        );
        conflicts.extend(differ.bind(&json).fetch_all(&mut **transaction).await?);
    }
    judge(imported, conflicts, moved, moves)
}

fn judge(
    imported: Imported,
    conflicts: Vec<String>,
    moved: Vec<String>,
    moves: Moves,
) -> Result<Imported, TableError> {
    if !conflicts.is_empty() {
        return Err(TableError::Conflicts(conflicts));
    }
    if !moved.is_empty() && moves == Moves::Refused {
        return Err(TableError::WouldMove(moved));
    }
    Ok(imported)
}

fn aliases(rows: &[ImportRow]) -> Vec<AliasRow<'_>> {
    rows.iter()
        .flat_map(|row| row.aliases.iter().map(|alias| AliasRow { alias, account: &row.account }))
        .collect()
}

fn json<T: Serialize>(rows: &[T]) -> String {
    // Strings, booleans and nothing else: there is nothing that could not be written.
    serde_json::to_string(rows).unwrap_or_else(|_| "[]".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<ImportRow>, Vec<Problem>> {
        read_csv(text.as_bytes(), Some(&BackendName::parse("old").unwrap()))
    }

    #[test]
    fn names_become_canonical_and_owners_have_a_default() {
        let rows = read(
            "account,owner,login,aliases,note\n\
             Ann@Example.ORG, new, , annie A@old.example ,\"the first, of all\"\n\
             list@bücher.example,,false,,\n",
        )
        .unwrap();
        assert_eq!(
            rows,
            [
                ImportRow {
                    account: "ann@example.org".into(),
                    owner: "new".into(),
                    login: true,
                    aliases: vec!["annie".into(), "a@old.example".into()],
                    note: Some("the first, of all".into()),
                },
                ImportRow {
                    account: "list@xn--bcher-kva.example".into(),
                    owner: "old".into(),
                    login: false,
                    aliases: vec![],
                    note: None,
                },
            ]
        );
    }

    #[test]
    fn every_problem_is_named_with_its_line() {
        let problems = read(
            "account,owner,login\n\
             ann@example.org,old,\n\
             bob@exa mple,old,\n\
             eve@example.org,Old,\n\
             joe@example.org,old,perhaps\n\
             ANN@example.org,old,\n\
             short\n",
        )
        .unwrap_err();
        let lines: Vec<u64> = problems.iter().map(|problem| problem.line).collect();
        assert_eq!(lines, [3, 4, 5, 6, 7], "{problems:?}");
    }

    #[test]
    fn an_unknown_column_is_refused() {
        let problems = read("account,onwer\nann@example.org,old\n").unwrap_err();
        assert!(problems[0].what.contains("onwer"), "{problems:?}");
    }
}
