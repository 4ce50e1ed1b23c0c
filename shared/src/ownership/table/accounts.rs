//! What the table says of accounts.

use super::{Settling, Table, TableError};
use crate::backend::BackendName;

/// Most changes shown of one name.
const AUDIT: i64 = 20;

const LIST: &str = "SELECT account, owner, state, login, epoch, former_owner, \
     CAST(flipped_at AS text) AS flipped_at, CAST(hold_until AS text) AS hold_until, disputed, note \
     FROM accounts \
     WHERE (CAST($1 AS text) IS NULL OR owner = $1) \
       AND (CAST($2 AS text) IS NULL OR account LIKE $2 ESCAPE '\\') \
       AND (NOT $3 OR state = 'held') \
       AND (CAST($4 AS text) IS NULL OR account = $4) \
     ORDER BY account LIMIT $5";
const TARGET: &str = "SELECT account FROM aliases WHERE alias = $1";
const ALIASES: &str = "SELECT alias FROM aliases WHERE account = $1 ORDER BY alias";
const CHANGES: &str = "SELECT epoch, CAST(at AS text) AS at, by, via, op, \
     old_owner, new_owner, old_state, new_state, old_account, new_account, old_login, new_login \
     FROM changes WHERE name = $1 AND kind IN ('account', 'alias') ORDER BY epoch DESC LIMIT $2";

/// Which accounts are listed. All conditions must hold.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Owned by it.
    pub owner: Option<BackendName>,
    /// In that domain.
    pub domain: Option<String>,
    /// Only held ones.
    pub held: bool,
    /// At most that many.
    pub limit: Option<u32>,
}

/// An account's row.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct AccountLine {
    /// Its name.
    pub account: String,
    /// The backend that serves it.
    pub owner: String,
    /// `active` or `held`.
    pub state: String,
    /// False for a list, a group or a forward.
    pub login: bool,
    /// The number of its last change.
    pub epoch: i64,
    /// Who had it before the last flip.
    pub former_owner: Option<String>,
    /// When that was, UTC.
    pub flipped_at: Option<String>,
    /// When a hold's lease ends, UTC.
    pub hold_until: Option<String>,
    /// Why only an operator can decide.
    pub disputed: Option<String>,
    /// An operator's words.
    pub note: Option<String>,
}

/// One change of an account or alias.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct AuditLine {
    /// Its number.
    pub epoch: i64,
    /// When, UTC.
    pub at: String,
    /// Who.
    pub by: String,
    /// By which function or command; `None` for plain SQL.
    pub via: Option<String>,
    /// `insert`, `update` or `delete`.
    pub op: String,
    /// Owner before.
    pub old_owner: Option<String>,
    /// Owner after.
    pub new_owner: Option<String>,
    /// State before.
    pub old_state: Option<String>,
    /// State after.
    pub new_state: Option<String>,
    /// An alias's account before.
    pub old_account: Option<String>,
    /// An alias's account after.
    pub new_account: Option<String>,
    /// Logins before.
    pub old_login: Option<bool>,
    /// Logins after.
    pub new_login: Option<bool>,
}

/// Everything about one account.
#[derive(Debug, Clone)]
pub struct Shown {
    /// Its row; `None` when only changes are left of it.
    pub account: Option<AccountLine>,
    /// Names that lead to it.
    pub aliases: Vec<String>,
    /// How far its last change is on the nodes.
    pub settling: Option<Settling>,
    /// Its newest changes, newest first.
    pub changes: Vec<AuditLine>,
}

impl Table {
    /// Accounts, by name.
    ///
    /// # Errors
    ///
    /// The database's failure.
    pub async fn list(&self, filter: &Filter) -> Result<Vec<AccountLine>, TableError> {
        self.select(filter, None).await
    }

    /// Everything about the account that `name` leads to. A name that never had a row is
    /// [`TableError::NoSuchAccount`].
    ///
    /// # Errors
    ///
    /// Not a name, no account, or the database's failure.
    pub async fn show(&self, name: &str) -> Result<Shown, TableError> {
        let name = super::canonical(name)?;
        let target: Option<String> = match self {
            Self::Postgres(pool) => {
                sqlx::query_scalar(TARGET).bind(&name).fetch_optional(pool).await?
            }
            Self::Sqlite { pool, .. } => {
                sqlx::query_scalar(TARGET).bind(&name).fetch_optional(pool).await?
            }
        };
        let name = target.unwrap_or(name);
        let account = self.select(&Filter::default(), Some(&name)).await?.pop();
        let (aliases, changes): (Vec<String>, Vec<AuditLine>) = match self {
            Self::Postgres(pool) => (
                sqlx::query_scalar(ALIASES).bind(&name).fetch_all(pool).await?,
                sqlx::query_as(CHANGES).bind(&name).bind(AUDIT).fetch_all(pool).await?,
            ),
            Self::Sqlite { pool, .. } => (
                sqlx::query_scalar(ALIASES).bind(&name).fetch_all(pool).await?,
                sqlx::query_as(CHANGES).bind(&name).bind(AUDIT).fetch_all(pool).await?,
            ),
        };
        if account.is_none() && changes.is_empty() {
            return Err(TableError::NoSuchAccount(name));
        }
        let settling = self.settling(&name).await?;
        Ok(Shown { account, aliases, settling, changes })
    }

    async fn select(
        &self,
        filter: &Filter,
        account: Option<&str>,
    ) -> Result<Vec<AccountLine>, TableError> {
        let owner = filter.owner.as_ref().map(BackendName::as_str);
        let domain = filter.domain.as_ref().map(|domain| {
            let literal = domain.to_ascii_lowercase().replace('\\', "\\\\").replace('_', "\\_");
            format!("%@{}", literal.replace('%', "\\%"))
        });
        let limit = filter.limit.map_or(i64::MAX, i64::from);
        Ok(match self {
            Self::Postgres(pool) => {
                let list = sqlx::query_as(LIST).bind(owner).bind(domain).bind(filter.held);
                list.bind(account).bind(limit).fetch_all(pool).await?
            }
            Self::Sqlite { pool, .. } => {
                let list = sqlx::query_as(LIST).bind(owner).bind(domain).bind(filter.held);
                list.bind(account).bind(limit).fetch_all(pool).await?
            }
        })
    }
}
