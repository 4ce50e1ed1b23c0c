-- The ownership table for one host: the twin of ../postgres/0001_ownership.sql, column by column.
--
-- The interface is the same plain SQL, in the sqlite3 shell too (`mailshift sql` opens a safe one):
--     UPDATE accounts SET owner = 'new' WHERE account = 'ann@example.org';
--
-- What differs: triggers work row by row, so each row has an epoch of its own; foreign keys are
-- triggers, because the shell has them off; hold, fence, flip and the other functions are commands of
-- `mailshift`; nodes, busy and activity live in a second file (../sqlite-nodes), so that the services
-- never block the shell, and the views that need them are made for a session by views.sql.
--
-- Times are UTC text as SQLite's own functions have it, `2030-12-31 23:59:59.999`, which sorts. Booleans
-- are 0 and 1.
-- Nothing here depends on PRAGMA foreign_keys or recursive_triggers. Needs SQLite 3.37.

-- ---- Tables ------------------------------------------------------------------------------------

-- Which database this is: another one under the same name is noticed.
CREATE TABLE database (
    one        INTEGER PRIMARY KEY DEFAULT 1 CHECK (one = 1),
    id         TEXT NOT NULL,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now'))
) STRICT;
INSERT INTO database (id) VALUES (lower(hex(randomblob(16))));

CREATE TABLE clock (
    one   INTEGER PRIMARY KEY DEFAULT 1 CHECK (one = 1),
    epoch INTEGER NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    nonce INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO clock DEFAULT VALUES;

-- What a command says about itself inside its transaction, and takes back before the commit.
CREATE TABLE caller (
    one   INTEGER PRIMARY KEY DEFAULT 1 CHECK (one = 1),
    actor TEXT,          -- changes.by
    via   TEXT           -- changes.via; 'prune_changes' may delete changes
) STRICT;
INSERT INTO caller DEFAULT VALUES;

CREATE TABLE domains (
    domain               TEXT PRIMARY KEY NOT NULL
                         CONSTRAINT "domain is in canonical form"
                         CHECK (domain = lower(domain) AND length(domain) <= 255
                                AND domain <> '' AND domain NOT GLOB '*[^a-z0-9._-]*'
                                AND domain NOT GLOB '.*' AND domain NOT GLOB '*.'
                                AND domain NOT GLOB '*..*'),
    default_owner        TEXT
                         CONSTRAINT "default_owner is a backend's name"
                         CHECK (length(default_owner) BETWEEN 1 AND 63
                                AND default_owner NOT GLOB '*[^a-z0-9._-]*'),
    subaddress_delimiter TEXT NOT NULL DEFAULT '+'
                         CHECK (subaddress_delimiter = ''
                                OR (length(subaddress_delimiter) = 1
                                    AND instr('!#$%&''*+-/=?^_`{|}~.', subaddress_delimiter))),
    epoch                INTEGER NOT NULL DEFAULT 0,
    note                 TEXT,
    created_at           TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now'))
) STRICT, WITHOUT ROWID;

CREATE TABLE accounts (
    account      TEXT PRIMARY KEY NOT NULL
                 CONSTRAINT "account is in canonical form"
                 CHECK (account = lower(account) AND account = trim(account)
                          AND length(CAST(account AS BLOB)) BETWEEN 1 AND 512
                          AND account NOT GLOB '*[' || char(1) || '-' || char(31) || char(127) || ']*'),
    owner        TEXT NOT NULL
                 CONSTRAINT "owner is a backend's name"
                 CHECK (length(owner) BETWEEN 1 AND 63 AND owner NOT GLOB '*[^a-z0-9._-]*'),
    login        INTEGER NOT NULL DEFAULT 1 CHECK (login IN (0, 1)),
    state        TEXT NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'held')),
    hold_token   TEXT,
    hold_until   TEXT
                 CONSTRAINT "hold_until is UTC text"
                 CHECK (hold_until GLOB
                     '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9] [0-9][0-9]:[0-9][0-9]:[0-9][0-9]*'),
    fenced       INTEGER NOT NULL DEFAULT 0 CHECK (fenced IN (0, 1)),
    disputed     TEXT,
    epoch        INTEGER NOT NULL DEFAULT 0,
    former_owner TEXT,
    flip_epoch   INTEGER,
    flipped_at   TEXT,
    note         TEXT,
    created_at   TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    CONSTRAINT "account ends in a domain"
    CHECK (NOT instr(account, '@')
           -- What follows the last @ is a domain, and something precedes it.
           OR (substr(account, length(rtrim(account, replace(account, '@', ''))) + 1) NOT GLOB '*[^a-z0-9._-]*'
               AND substr(account, length(rtrim(account, replace(account, '@', ''))) + 1) <> ''
               AND '.' || substr(account, length(rtrim(account, replace(account, '@', ''))) + 1) || '.' NOT GLOB '*..*'
               AND rtrim(account, replace(account, '@', '')) NOT GLOB '*@@'
               AND account NOT GLOB '@*'))
) STRICT, WITHOUT ROWID;
CREATE INDEX accounts_held ON accounts (hold_until) WHERE state = 'held';

CREATE TABLE aliases (
    alias      TEXT PRIMARY KEY NOT NULL
               CONSTRAINT "alias is in canonical form"
               CHECK (alias = lower(alias) AND alias = trim(alias)
                          AND length(CAST(alias AS BLOB)) BETWEEN 1 AND 512
                          AND alias NOT GLOB '*[' || char(1) || '-' || char(31) || char(127) || ']*'),
    account    TEXT NOT NULL,
    login      INTEGER NOT NULL DEFAULT 1 CHECK (login IN (0, 1)),
    epoch      INTEGER NOT NULL DEFAULT 0,
    note       TEXT,
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    CONSTRAINT "alias ends in a domain"
    CHECK (NOT instr(alias, '@')
           -- What follows the last @ is a domain, and something precedes it.
           OR (substr(alias, length(rtrim(alias, replace(alias, '@', ''))) + 1) NOT GLOB '*[^a-z0-9._-]*'
               AND substr(alias, length(rtrim(alias, replace(alias, '@', ''))) + 1) <> ''
               AND '.' || substr(alias, length(rtrim(alias, replace(alias, '@', ''))) + 1) || '.' NOT GLOB '*..*'
               AND rtrim(alias, replace(alias, '@', '')) NOT GLOB '*@@'
               AND alias NOT GLOB '@*'))
) STRICT, WITHOUT ROWID;
CREATE INDEX aliases_account ON aliases (account);

CREATE TABLE changes (
    epoch    INTEGER NOT NULL,
    kind     TEXT NOT NULL CHECK (kind IN ('account', 'alias', 'domain')),
    name     TEXT NOT NULL,
    op       TEXT NOT NULL CHECK (op IN ('insert', 'update', 'delete')),
    deleted  INTEGER GENERATED ALWAYS AS (op = 'delete') STORED,
    old_owner TEXT, new_owner TEXT,
    old_state TEXT, new_state TEXT,
    old_login INTEGER, new_login INTEGER,
    old_account TEXT, new_account TEXT,
    old_default_owner TEXT, new_default_owner TEXT,
    old_subaddress_delimiter TEXT, new_subaddress_delimiter TEXT,
    nonce    INTEGER NOT NULL,
    at       TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    by       TEXT NOT NULL,
    via      TEXT,
    PRIMARY KEY (epoch, kind, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX changes_name ON changes (name, epoch);
CREATE INDEX changes_new_account ON changes (new_account, epoch) WHERE new_account IS NOT NULL;
CREATE INDEX changes_old_account ON changes (old_account, epoch) WHERE old_account IS NOT NULL;

-- ---- Triggers: accounts ----------------------------------------------------------------------------

CREATE TRIGGER accounts_insert_guard BEFORE INSERT ON accounts
BEGIN
    SELECT RAISE(ABORT, 'the name is an alias and cannot be an account, too: DELETE the alias first')
     WHERE EXISTS (SELECT 1 FROM aliases WHERE alias = NEW.account);
    -- INSERT OR REPLACE would end the hold without a word.
    SELECT RAISE(ABORT, 'the account is held: end the hold with UPDATE accounts SET state = ''active''')
     WHERE EXISTS (SELECT 1 FROM accounts WHERE account = NEW.account AND state = 'held');
END;

-- Where INSERT OR REPLACE took an older row away unseen, the last change tells what was in it.
CREATE TRIGGER accounts_inserted AFTER INSERT ON accounts
BEGIN
    UPDATE clock SET epoch = epoch + 1, nonce = random();
    UPDATE accounts SET
        epoch = (SELECT epoch FROM clock),
        hold_token = iif(NEW.state = 'held', NEW.hold_token, NULL),
        hold_until = iif(NEW.state = 'held', NEW.hold_until, NULL),
        fenced = 0,
        disputed = NULL,
        former_owner = nullif(
            coalesce((SELECT new_owner FROM changes WHERE kind = 'account' AND name = NEW.account ORDER BY epoch DESC LIMIT 1),
                     (SELECT default_owner FROM domains
                       WHERE instr(NEW.account, '@')
                         AND domain = substr(NEW.account, length(rtrim(NEW.account, replace(NEW.account, '@', ''))) + 1))),
            NEW.owner),
        flip_epoch = NULL,
        flipped_at = NULL
     WHERE account = NEW.account;
    UPDATE accounts SET flip_epoch = epoch, flipped_at = strftime('%Y-%m-%d %H:%M:%f', 'now')
     WHERE account = NEW.account AND former_owner IS NOT NULL;
    INSERT INTO changes (epoch, kind, name, op, old_owner, new_owner, old_state, new_state,
                         old_login, new_login, nonce, by, via)
    SELECT clock.epoch, 'account', NEW.account, iif(last.new_owner IS NULL, 'insert', 'update'),
           last.new_owner, NEW.owner, last.new_state, NEW.state, last.new_login, NEW.login,
           clock.nonce, coalesce(caller.actor, 'sqlite'), caller.via
      FROM clock, caller
      LEFT JOIN (SELECT new_owner, new_state, new_login FROM changes
                  WHERE kind = 'account' AND name = NEW.account
                  ORDER BY epoch DESC LIMIT 1) AS last;
END;

CREATE TRIGGER accounts_key BEFORE UPDATE OF account ON accounts WHEN NEW.account <> OLD.account
BEGIN
    SELECT RAISE(ABORT, 'an account cannot be renamed: INSERT the new name, make the old one its alias');
END;

CREATE TRIGGER accounts_held BEFORE UPDATE OF owner ON accounts
WHEN NEW.owner <> OLD.owner AND OLD.state = 'held' AND NEW.state = 'held'
BEGIN
    SELECT RAISE(ABORT, 'a held account cannot change its owner: skip it with AND state = ''active'', or end the hold with SET owner = …, state = ''active''');
END;

CREATE TRIGGER accounts_epoch BEFORE UPDATE OF epoch ON accounts
WHEN NEW.epoch <> OLD.epoch AND NEW.epoch <> (SELECT epoch FROM clock)
BEGIN
    SELECT RAISE(ABORT, 'epochs are set by triggers');
END;

CREATE TRIGGER accounts_updated AFTER UPDATE OF owner, state, login ON accounts
WHEN NEW.owner <> OLD.owner OR NEW.state <> OLD.state OR NEW.login <> OLD.login
BEGIN
    UPDATE clock SET epoch = epoch + 1, nonce = random();
    UPDATE accounts SET
        epoch = (SELECT epoch FROM clock),
        hold_token = iif(NEW.state = 'held', NEW.hold_token, NULL),
        hold_until = iif(NEW.state = 'held', NEW.hold_until, NULL),
        disputed = iif(NEW.state = 'held', NEW.disputed, NULL),
        fenced = iif(NEW.state = 'held' AND NEW.hold_token IS OLD.hold_token, NEW.fenced, 0),
        former_owner = iif(NEW.owner <> OLD.owner, OLD.owner, OLD.former_owner),
        flip_epoch = iif(NEW.owner <> OLD.owner, (SELECT epoch FROM clock), OLD.flip_epoch),
        flipped_at = iif(NEW.owner <> OLD.owner, strftime('%Y-%m-%d %H:%M:%f', 'now'), OLD.flipped_at)
     WHERE account = NEW.account;
    INSERT INTO changes (epoch, kind, name, op, old_owner, new_owner, old_state, new_state,
                         old_login, new_login, nonce, by, via)
    SELECT clock.epoch, 'account', NEW.account, 'update', OLD.owner, NEW.owner, OLD.state, NEW.state,
           OLD.login, NEW.login, clock.nonce, coalesce(caller.actor, 'sqlite'), caller.via
      FROM clock, caller;
END;

-- A new token needs a new fence; an active row has neither.
CREATE TRIGGER accounts_hold AFTER UPDATE OF hold_token, hold_until, fenced, disputed ON accounts
WHEN NEW.state = OLD.state
 AND (NEW.fenced AND NEW.hold_token IS NOT OLD.hold_token
      OR NEW.state = 'active' AND (NEW.fenced OR coalesce(NEW.hold_token, NEW.hold_until, NEW.disputed)
                                                IS NOT NULL))
BEGIN
    UPDATE accounts SET
        hold_token = iif(NEW.state = 'held', NEW.hold_token, NULL),
        hold_until = iif(NEW.state = 'held', NEW.hold_until, NULL),
        disputed = iif(NEW.state = 'held', NEW.disputed, NULL),
        fenced = 0
     WHERE account = NEW.account;
END;

CREATE TRIGGER accounts_delete_guard BEFORE DELETE ON accounts
BEGIN
    SELECT RAISE(ABORT, 'the account is held and cannot be deleted: end the hold first')
     WHERE OLD.state = 'held';
    SELECT RAISE(ABORT, 'the account has aliases: delete them first')
     WHERE EXISTS (SELECT 1 FROM aliases WHERE account = OLD.account);
    SELECT RAISE(ABORT, 'deleting the account would move it to its domain''s default owner: UPDATE its owner first, or the domain''s default_owner')
     WHERE instr(OLD.account, '@')
       AND EXISTS (SELECT 1 FROM domains
                    WHERE domain = substr(OLD.account, length(rtrim(OLD.account, replace(OLD.account, '@', ''))) + 1)
                      AND default_owner <> OLD.owner);
END;

CREATE TRIGGER accounts_deleted AFTER DELETE ON accounts
BEGIN
    UPDATE clock SET epoch = epoch + 1, nonce = random();
    INSERT INTO changes (epoch, kind, name, op, old_owner, old_state, old_login, nonce, by, via)
    SELECT clock.epoch, 'account', OLD.account, 'delete', OLD.owner, OLD.state, OLD.login,
           clock.nonce, coalesce(caller.actor, 'sqlite'), caller.via
      FROM clock, caller;
END;

-- ---- Triggers: aliases -----------------------------------------------------------------------------

CREATE TRIGGER aliases_insert_guard BEFORE INSERT ON aliases
BEGIN
    SELECT RAISE(ABORT, 'the name is an account and cannot be an alias, too: DELETE the account first')
     WHERE EXISTS (SELECT 1 FROM accounts WHERE account = NEW.alias);
    SELECT RAISE(ABORT, 'the alias leads to an account that has no row: INSERT that first')
     WHERE NOT EXISTS (SELECT 1 FROM accounts WHERE account = NEW.account);
END;

CREATE TRIGGER aliases_inserted AFTER INSERT ON aliases
BEGIN
    UPDATE clock SET epoch = epoch + 1, nonce = random();
    UPDATE aliases SET epoch = (SELECT epoch FROM clock) WHERE alias = NEW.alias;
    INSERT INTO changes (epoch, kind, name, op, old_account, new_account, old_login, new_login,
                         nonce, by, via)
    SELECT clock.epoch, 'alias', NEW.alias, iif(last.new_account IS NULL, 'insert', 'update'),
           last.new_account, NEW.account, last.new_login, NEW.login,
           clock.nonce, coalesce(caller.actor, 'sqlite'), caller.via
      FROM clock, caller
      LEFT JOIN (SELECT new_account, new_login FROM changes
                  WHERE kind = 'alias' AND name = NEW.alias
                  ORDER BY epoch DESC LIMIT 1) AS last;
END;

CREATE TRIGGER aliases_key BEFORE UPDATE OF alias ON aliases WHEN NEW.alias <> OLD.alias
BEGIN
    SELECT RAISE(ABORT, 'an alias cannot be renamed: DELETE it and INSERT the new name');
END;

CREATE TRIGGER aliases_target BEFORE UPDATE OF account ON aliases
WHEN NOT EXISTS (SELECT 1 FROM accounts WHERE account = NEW.account)
BEGIN
    SELECT RAISE(ABORT, 'the alias leads to an account that has no row: INSERT that first');
END;

CREATE TRIGGER aliases_epoch BEFORE UPDATE OF epoch ON aliases
WHEN NEW.epoch <> OLD.epoch AND NEW.epoch <> (SELECT epoch FROM clock)
BEGIN
    SELECT RAISE(ABORT, 'epochs are set by triggers');
END;

CREATE TRIGGER aliases_updated AFTER UPDATE OF account, login ON aliases
WHEN NEW.account <> OLD.account OR NEW.login <> OLD.login
BEGIN
    UPDATE clock SET epoch = epoch + 1, nonce = random();
    UPDATE aliases SET epoch = (SELECT epoch FROM clock) WHERE alias = NEW.alias;
    INSERT INTO changes (epoch, kind, name, op, old_account, new_account, old_login, new_login,
                         nonce, by, via)
    SELECT clock.epoch, 'alias', NEW.alias, 'update', OLD.account, NEW.account, OLD.login, NEW.login,
           clock.nonce, coalesce(caller.actor, 'sqlite'), caller.via
      FROM clock, caller;
END;

CREATE TRIGGER aliases_deleted AFTER DELETE ON aliases
BEGIN
    UPDATE clock SET epoch = epoch + 1, nonce = random();
    INSERT INTO changes (epoch, kind, name, op, old_account, old_login, nonce, by, via)
    SELECT clock.epoch, 'alias', OLD.alias, 'delete', OLD.account, OLD.login,
           clock.nonce, coalesce(caller.actor, 'sqlite'), caller.via
      FROM clock, caller;
END;

-- ---- Triggers: domains -----------------------------------------------------------------------------

CREATE TRIGGER domains_inserted AFTER INSERT ON domains
BEGIN
    UPDATE clock SET epoch = epoch + 1, nonce = random();
    UPDATE domains SET epoch = (SELECT epoch FROM clock) WHERE domain = NEW.domain;
    INSERT INTO changes (epoch, kind, name, op, old_default_owner, new_default_owner,
                         old_subaddress_delimiter, new_subaddress_delimiter, nonce, by, via)
    SELECT clock.epoch, 'domain', NEW.domain,
           iif(last.new_subaddress_delimiter IS NULL, 'insert', 'update'),
           last.new_default_owner, NEW.default_owner,
           last.new_subaddress_delimiter, NEW.subaddress_delimiter,
           clock.nonce, coalesce(caller.actor, 'sqlite'), caller.via
      FROM clock, caller
      LEFT JOIN (SELECT new_default_owner, new_subaddress_delimiter FROM changes
                  WHERE kind = 'domain' AND name = NEW.domain
                  ORDER BY epoch DESC LIMIT 1) AS last;
END;

CREATE TRIGGER domains_key BEFORE UPDATE OF domain ON domains WHEN NEW.domain <> OLD.domain
BEGIN
    SELECT RAISE(ABORT, 'a domain cannot be renamed: DELETE it and INSERT the new name');
END;

CREATE TRIGGER domains_epoch BEFORE UPDATE OF epoch ON domains
WHEN NEW.epoch <> OLD.epoch AND NEW.epoch <> (SELECT epoch FROM clock)
BEGIN
    SELECT RAISE(ABORT, 'epochs are set by triggers');
END;

CREATE TRIGGER domains_updated AFTER UPDATE OF default_owner, subaddress_delimiter ON domains
WHEN NEW.default_owner IS NOT OLD.default_owner
  OR NEW.subaddress_delimiter <> OLD.subaddress_delimiter
BEGIN
    UPDATE clock SET epoch = epoch + 1, nonce = random();
    UPDATE domains SET epoch = (SELECT epoch FROM clock) WHERE domain = NEW.domain;
    INSERT INTO changes (epoch, kind, name, op, old_default_owner, new_default_owner,
                         old_subaddress_delimiter, new_subaddress_delimiter, nonce, by, via)
    SELECT clock.epoch, 'domain', NEW.domain, 'update', OLD.default_owner, NEW.default_owner,
           OLD.subaddress_delimiter, NEW.subaddress_delimiter,
           clock.nonce, coalesce(caller.actor, 'sqlite'), caller.via
      FROM clock, caller;
END;

CREATE TRIGGER domains_deleted AFTER DELETE ON domains
BEGIN
    UPDATE clock SET epoch = epoch + 1, nonce = random();
    INSERT INTO changes (epoch, kind, name, op, old_default_owner, old_subaddress_delimiter,
                         nonce, by, via)
    SELECT clock.epoch, 'domain', OLD.domain, 'delete', OLD.default_owner, OLD.subaddress_delimiter,
           clock.nonce, coalesce(caller.actor, 'sqlite'), caller.via
      FROM clock, caller;
END;

-- ---- Triggers: what nobody may do ------------------------------------------------------------------

CREATE TRIGGER changes_insert BEFORE INSERT ON changes
WHEN NOT EXISTS (SELECT 1 FROM clock WHERE epoch = NEW.epoch AND nonce = NEW.nonce)
  OR EXISTS (SELECT 1 FROM changes
              WHERE epoch = NEW.epoch AND kind = NEW.kind AND name = NEW.name)
BEGIN
    SELECT RAISE(ABORT, 'changes are written by triggers');
END;
CREATE TRIGGER changes_update BEFORE UPDATE ON changes
BEGIN
    SELECT RAISE(ABORT, 'changes is the audit: rows are not updated');
END;
CREATE TRIGGER changes_delete BEFORE DELETE ON changes
WHEN (SELECT via FROM caller) IS NOT 'prune_changes'
BEGIN
    SELECT RAISE(ABORT, 'changes is the audit: rows are not deleted');
END;
CREATE TRIGGER clock_forward BEFORE UPDATE ON clock WHEN NEW.epoch <= OLD.epoch
BEGIN
    SELECT RAISE(ABORT, 'the clock only goes forward');
END;
CREATE TRIGGER clock_insert BEFORE INSERT ON clock
BEGIN
    SELECT RAISE(ABORT, 'the clock has one row');
END;
CREATE TRIGGER clock_delete BEFORE DELETE ON clock
BEGIN
    SELECT RAISE(ABORT, 'the clock has one row');
END;
CREATE TRIGGER database_insert BEFORE INSERT ON database
BEGIN
    SELECT RAISE(ABORT, 'the database''s id never changes');
END;
CREATE TRIGGER database_update BEFORE UPDATE ON database
BEGIN
    SELECT RAISE(ABORT, 'the database''s id never changes');
END;
CREATE TRIGGER database_delete BEFORE DELETE ON database
BEGIN
    SELECT RAISE(ABORT, 'the database''s id never changes');
END;

-- ---- Views -----------------------------------------------------------------------------------------

-- How many accounts each owner has, domain by domain.
CREATE VIEW migration_progress AS
SELECT a.domain, a.owner, a.owner IS d.default_owner AS is_default,
       count(*) AS accounts, sum(a.state = 'held') AS held, max(a.flipped_at) AS last_flip
  FROM (SELECT iif(instr(account, '@'),
                   substr(account, length(rtrim(account, replace(account, '@', ''))) + 1), NULL) AS domain,
               owner, state, flipped_at
          FROM accounts) a
  LEFT JOIN domains d ON d.domain = a.domain
 GROUP BY a.domain, a.owner
 ORDER BY a.domain, a.owner;

-- Every address with a row, and who takes its mail. Those that the backend `old` must hand to us:
--     SELECT address FROM addresses WHERE owner <> 'old' OR state = 'held';
CREATE VIEW addresses AS
SELECT account AS address, account, owner, state FROM accounts WHERE instr(account, '@')
UNION ALL
SELECT s.alias, a.account, a.owner, a.state
  FROM aliases s JOIN accounts a ON a.account = s.account WHERE instr(s.alias, '@');
