-- The ownership table: who owns an account, who changed it, and which node has applied it.
--
-- The interface is plain SQL:
--     UPDATE accounts SET owner = 'new' WHERE account = 'ann@example.org';
-- Triggers give each statement one number (the epoch), write what changed to `changes` and notify.
-- Movers use hold, renew, release, fence and flip; each call is a transaction of its own, under READ
-- COMMITTED.
--
-- Times are the database's. Errors have these SQLSTATEs:
--     MS001  the account is held                    MS006  owned by triggers, append-only, or a key
--     MS002  not held under this token              MS007  a name is both account and alias
--     MS003  not fenced                             MS008  an owner that a live node does not know
--     MS004  no such account                        MS009  wrong use: isolation, lease, no tick
--     MS005  the delete would change the owner      MS010  a row would move the name: it lives by another's
--                                                   55P03  another transaction keeps the clock locked
--
-- Needs PostgreSQL 14 or later. The role that runs this owns everything here; grants are in roles.sql.

DO $$
BEGIN
    IF current_schema() IS DISTINCT FROM 'public' THEN
        RAISE EXCEPTION 'the ownership table lives in the schema public, not in %', current_schema()
            USING HINT = 'Connect as a role and with options whose search_path begins with public.';
    END IF;
END
$$;

-- ---- Tables ------------------------------------------------------------------------------------

-- Which database this is: another one under the same name is noticed.
CREATE TABLE database (
    one        boolean PRIMARY KEY DEFAULT true CHECK (one),
    id         text COLLATE "C" NOT NULL DEFAULT gen_random_uuid()::text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
INSERT INTO database DEFAULT VALUES;

-- One row. Whoever changes what routes locks it first, until the end of the transaction: so commit
-- order equals number order, and a reader of "all changes after n" misses none.
CREATE TABLE clock (
    one   boolean PRIMARY KEY DEFAULT true CHECK (one),
    epoch bigint NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    nonce bigint NOT NULL DEFAULT 0,
    xact  xid8   NOT NULL DEFAULT pg_current_xact_id() -- the transaction that ticked last
);
INSERT INTO clock DEFAULT VALUES;

-- A name in canonical form: what look-ups ask for (ASCII letters in lower case, domain an A-label).
CREATE FUNCTION is_canonical(name text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN name = lower(name COLLATE "C")
    AND octet_length(name) <= 512
    AND name COLLATE "C" ~ '^[^[:cntrl:][:space:]]([^[:cntrl:]]*[^[:cntrl:][:space:]])?$'
    AND (strpos(name, '@') = 0
         OR name COLLATE "C" ~ '[^@]@[a-z0-9_-]+(\.[a-z0-9_-]+)*$');

-- The domain of a name; NULL for a bare one.
CREATE FUNCTION domain_of(name text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE WHEN strpos(name, '@') > 0 THEN substring(name FROM '[^@]*$') COLLATE "C" END;

-- A backend's name, as the configuration declares it.
CREATE FUNCTION is_owner(owner text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN owner COLLATE "C" ~ '^[a-z0-9._-]{1,63}$';

CREATE TABLE domains (
    domain               text COLLATE "C" PRIMARY KEY
                         CONSTRAINT domain_is_in_canonical_form
                         CHECK (is_canonical(domain) AND is_canonical('x@' || domain)
                                AND strpos(domain, '@') = 0),
    -- Where accounts without a row live. NULL: nowhere, they are refused.
    default_owner        text COLLATE "C"
                         CONSTRAINT default_owner_is_a_backend_name CHECK (is_owner(default_owner)),
    -- Separates `ann` from its detail in `ann+detail@`. Empty: no sub-addresses.
    subaddress_delimiter text COLLATE "C" NOT NULL DEFAULT '+'
                         CHECK (subaddress_delimiter ~ '^[!#$%&''*+/=?^_`{|}~.-]?$'),
    epoch                bigint NOT NULL DEFAULT 0,
    note                 text,
    created_at           timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TABLE accounts (
    account      text COLLATE "C" PRIMARY KEY
                 CONSTRAINT account_is_in_canonical_form CHECK (is_canonical(account)),
    owner        text COLLATE "C" NOT NULL
                 CONSTRAINT owner_is_a_backend_name CHECK (is_owner(owner)),
    -- False for a list, a group, a forward: it takes mail, its owner expands it, nobody logs in.
    login        boolean NOT NULL DEFAULT true,
    -- active: served by its owner. held: served by nobody.
    state        text COLLATE "C" NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'held')),
    hold_token   text COLLATE "C",
    -- A held row without it ends only by an operator.
    hold_until   timestamptz,
    -- Every live node had applied the hold when its holder asked.
    fenced       boolean NOT NULL DEFAULT false,
    -- Why two histories disagree about this account; it is held until an operator decides.
    disputed     text,
    epoch        bigint NOT NULL DEFAULT 0,
    -- The last change of owner: who had it before, the epoch it began with, when.
    former_owner text COLLATE "C",
    flip_epoch   bigint,
    flipped_at   timestamptz,
    note         text,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT active_is_not_held
    CHECK (state = 'held'
           OR (hold_token IS NULL AND hold_until IS NULL AND disputed IS NULL AND NOT fenced))
);
CREATE INDEX accounts_held ON accounts (hold_until) WHERE state = 'held';

-- Other addresses and login names of an account: bare names, old domains.
CREATE TABLE aliases (
    alias      text COLLATE "C" PRIMARY KEY
               CONSTRAINT alias_is_in_canonical_form CHECK (is_canonical(alias)),
    account    text COLLATE "C" NOT NULL
               REFERENCES accounts ON UPDATE RESTRICT ON DELETE RESTRICT,
    -- False: an address only.
    login      boolean NOT NULL DEFAULT true,
    epoch      bigint NOT NULL DEFAULT 0,
    note       text,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX aliases_account ON aliases (account);

-- What changed, in the order (epoch, kind, name). A row is enough to bring a copy up to date: the new_
-- columns of its kind are the whole row as far as it routes. Also the audit; outlives its rows.
CREATE TABLE changes (
    epoch    bigint NOT NULL,
    kind     text COLLATE "C" NOT NULL CHECK (kind IN ('account', 'alias', 'domain')),
    name     text COLLATE "C" NOT NULL,
    op       text COLLATE "C" NOT NULL CHECK (op IN ('insert', 'update', 'delete')),
    deleted  boolean GENERATED ALWAYS AS (op = 'delete') STORED,
    -- kind 'account'
    old_owner text COLLATE "C", new_owner text COLLATE "C",
    old_state text COLLATE "C", new_state text COLLATE "C",
    -- kinds 'account' and 'alias'
    old_login boolean, new_login boolean,
    -- kind 'alias'
    old_account text COLLATE "C", new_account text COLLATE "C",
    -- kind 'domain'
    old_default_owner text COLLATE "C", new_default_owner text COLLATE "C",
    old_subaddress_delimiter text COLLATE "C", new_subaddress_delimiter text COLLATE "C",
    -- The clock's nonce at that epoch. Another one under the same number: history was lost.
    nonce    bigint NOT NULL,
    at       timestamptz NOT NULL,
    -- session_user, and what the client says of itself in `mailshift.actor`.
    by       text NOT NULL,
    -- The function that made the change; NULL for plain SQL.
    via      text,
    PRIMARY KEY (epoch, kind, name)
);
CREATE INDEX changes_name ON changes (name, epoch);
-- Which aliases have led to an account, and when.
CREATE INDEX changes_new_account ON changes (new_account, epoch) WHERE new_account IS NOT NULL;
CREATE INDEX changes_old_account ON changes (old_account, epoch) WHERE old_account IS NOT NULL;

-- One row for each service of each node. Written by the services.
CREATE TABLE nodes (
    node        text COLLATE "C" NOT NULL,
    service     text COLLATE "C" NOT NULL CHECK (service IN ('mx-gateway', 'login-proxy')),
    incarnation text COLLATE "C" NOT NULL, -- another one: another process
    version     text NOT NULL,
    -- Past it the node serves nothing (it stops earlier by its own clock): `lapsed`.
    lease_until timestamptz NOT NULL,
    -- All changes up to this one are in its copy; what is not yet drained is in `busy`.
    seen_epoch  bigint NOT NULL DEFAULT 0,
    listen      boolean NOT NULL DEFAULT false, -- NOTIFY reaches it
    -- {"name": "hash of its addresses", …}: every backend it could serve from.
    backends    jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(backends) = 'object'),
    started_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- What was done there until then is in `activity`. NULL: it does not say what is done there.
    activity_at timestamptz,
    -- An operator said that it will not come back. Its next start clears this.
    forgotten   boolean NOT NULL DEFAULT false,
    PRIMARY KEY (node, service)
);

-- What still runs for an account under an older epoch than the last change of it.
CREATE TABLE busy (
    node       text COLLATE "C" NOT NULL,
    service    text COLLATE "C" NOT NULL,
    account    text COLLATE "C" NOT NULL,
    epoch      bigint NOT NULL, -- of the change that waits
    sessions   bigint NOT NULL DEFAULT 0,
    deliveries bigint NOT NULL DEFAULT 0,
    in_doubt   bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (node, service, account),
    FOREIGN KEY (node, service) REFERENCES nodes ON DELETE CASCADE
);
CREATE INDEX busy_account ON busy (account);

-- What an account's users and mail did at an owner. `epoch` is the newest one that work there was
-- registered under; with it below accounts.flip_epoch the row tells of an earlier stay, and the next
-- report starts its counts and first times afresh.
CREATE TABLE activity (
    account        text COLLATE "C" NOT NULL,
    owner          text COLLATE "C" NOT NULL,
    epoch          bigint NOT NULL,
    first_login    timestamptz,
    last_login     timestamptz,
    first_delivery timestamptz,
    last_delivery  timestamptz,
    logins         bigint NOT NULL DEFAULT 0,
    deliveries     bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (account, owner)
);

-- ---- Triggers: the clock ---------------------------------------------------------------------------

-- BEFORE STATEMENT: one tick, so the clock is locked before any row is. In the other order two bulk
-- updates deadlock.
CREATE FUNCTION tick() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET lock_timeout = '5s'
AS $$
DECLARE
    blocker text;
BEGIN
    UPDATE clock SET
        epoch = epoch + 1,
        nonce = ('x' || left(translate(gen_random_uuid()::text, '-', ''), 16))::bit(64)::bigint,
        xact = pg_current_xact_id();
    RETURN NULL;
EXCEPTION WHEN lock_not_available THEN
    -- Waiters have the same lock on the table, but they are waiting.
    SELECT format('process %s, user %s, application %s, %s', a.pid, a.usename,
                  coalesce(nullif(a.application_name, ''), '?'), coalesce(a.state, '?'))
      INTO blocker
      FROM pg_locks l JOIN pg_stat_activity a USING (pid)
     WHERE l.locktype = 'relation' AND l.relation = 'clock'::regclass
       AND l.mode = 'RowExclusiveLock' AND l.granted AND a.pid <> pg_backend_pid()
     ORDER BY a.wait_event_type IS NOT DISTINCT FROM 'Lock', a.xact_start
     LIMIT 1;
    RAISE EXCEPTION USING
        ERRCODE = 'lock_not_available',
        MESSAGE = format('another transaction has changed accounts and has not ended for 5 s (%s)',
                         coalesce(blocker, 'it ended just now')),
        HINT = 'Commit it or roll it back there, or SELECT pg_terminate_backend(process).';
END
$$;

-- The number of the statement at work: the clock's, which this transaction has locked.
CREATE FUNCTION ticked_epoch() RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    ticked bigint;
BEGIN
    SELECT epoch INTO ticked FROM clock WHERE xact = pg_current_xact_id();
    IF ticked IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'MS009',
            MESSAGE = 'a trigger changed what routes in a statement that does not name it';
    END IF;
    RETURN ticked;
END
$$;

CREATE FUNCTION caller() RETURNS text
LANGUAGE sql STABLE
RETURN session_user || coalesce(' as ' || nullif(current_setting('mailshift.actor', true), ''), '');

-- The function at work; NULL in plain SQL.
CREATE FUNCTION via() RETURNS text
LANGUAGE sql STABLE
RETURN nullif(current_setting('mailshift.via', true), '');

-- Names the function at work and returns what was named before, which each function puts back at its end.
-- An error needs no care: what it undoes includes the setting. (A clause SET mailshift.via of CREATE
-- FUNCTION would do both, but only a superuser may write one.)
CREATE FUNCTION set_via(name text) RETURNS text
LANGUAGE plpgsql
AS $$
DECLARE
    before text := via();
BEGIN
    PERFORM set_config('mailshift.via', coalesce(name, ''), true);
    RETURN before;
END
$$;

-- ---- Triggers: accounts ----------------------------------------------------------------------------

CREATE FUNCTION accounts_row() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    previous text;
BEGIN
    IF TG_OP = 'DELETE' THEN
        IF OLD.state = 'held' THEN
            RAISE EXCEPTION USING ERRCODE = 'MS001',
                MESSAGE = format('account %s is held and cannot be deleted', OLD.account),
                HINT = 'End the hold first: UPDATE accounts SET state = ''active'' …';
        END IF;
        RETURN OLD;
    ELSIF TG_OP = 'INSERT' THEN
        previous := (SELECT default_owner FROM domains WHERE domain = domain_of(NEW.account));
        NEW.fenced := false;
        NEW.disputed := NULL;
        NEW.former_owner := NULL;
        NEW.flip_epoch := NULL;
        NEW.flipped_at := NULL;
    ELSE
        IF NEW.account <> OLD.account THEN
            RAISE EXCEPTION USING ERRCODE = 'MS006',
                MESSAGE = format('account %s cannot be renamed', OLD.account),
                HINT = 'INSERT the new name and make the old one an alias of it.';
        END IF;
        previous := OLD.owner;
        NEW.epoch := OLD.epoch;
        NEW.former_owner := OLD.former_owner;
        NEW.flip_epoch := OLD.flip_epoch;
        NEW.flipped_at := OLD.flipped_at;
        IF NEW.hold_token IS DISTINCT FROM OLD.hold_token THEN
            NEW.fenced := false;
        END IF;
        IF NEW.owner <> OLD.owner AND OLD.state = 'held' AND NEW.state = 'held' THEN
            RAISE EXCEPTION USING ERRCODE = 'MS001',
                MESSAGE = format('account %s is held; its owner cannot change', OLD.account),
                HINT = 'Skip held accounts with AND state = ''active'', or end the hold in the same '
                       'statement: SET owner = …, state = ''active''.';
        END IF;
    END IF;

    IF NEW.state = 'active' THEN
        NEW.hold_token := NULL;
        NEW.hold_until := NULL;
        NEW.fenced := false;
        NEW.disputed := NULL;
    END IF;
    IF TG_OP = 'UPDATE' AND NEW.owner = OLD.owner AND NEW.state = OLD.state AND NEW.login = OLD.login
    THEN
        RETURN NEW;
    END IF;
    NEW.epoch := ticked_epoch();
    IF NEW.owner <> previous THEN
        NEW.former_owner := previous;
        NEW.flip_epoch := NEW.epoch;
        NEW.flipped_at := clock_timestamp();
    END IF;
    RETURN NEW;
END
$$;

-- AFTER STATEMENT. Dynamic SQL, so that a statement of 100,000 rows is never run by the plan that was
-- made for one of a single row, nor the reverse.
CREATE FUNCTION accounts_inserted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    clash text;
    rows bigint;
BEGIN
    EXECUTE 'SELECT alias FROM aliases JOIN inserted ON alias = inserted.account LIMIT 1' INTO clash;
    IF clash IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'MS007',
            MESSAGE = format('%s is an alias and cannot be an account, too', clash),
            HINT = 'DELETE the alias first.';
    END IF;
    EXECUTE $sql$
        INSERT INTO changes (epoch, kind, name, op, new_owner, new_state, new_login, nonce, at, by, via)
        SELECT i.epoch, 'account', i.account, 'insert', i.owner, i.state, i.login,
               clock.nonce, $1, caller(), via()
          FROM inserted i, clock
    $sql$ USING clock_timestamp();
    GET DIAGNOSTICS rows = ROW_COUNT;
    IF rows > 0 THEN
        NOTIFY mailshift;
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION accounts_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    rows bigint;
BEGIN
    EXECUTE $sql$
        INSERT INTO changes (epoch, kind, name, op, old_owner, new_owner, old_state, new_state,
                             old_login, new_login, nonce, at, by, via)
        SELECT n.epoch, 'account', n.account, 'update', o.owner, n.owner, o.state, n.state,
               o.login, n.login, clock.nonce, $1, caller(), via()
          FROM before o JOIN after n USING (account), clock
         WHERE (o.owner, o.state, o.login) IS DISTINCT FROM (n.owner, n.state, n.login)
    $sql$ USING clock_timestamp();
    GET DIAGNOSTICS rows = ROW_COUNT;
    IF rows > 0 THEN
        NOTIFY mailshift;
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION accounts_deleted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    silent record;
    rows bigint;
BEGIN
    -- Without its row an account lives at its domain's default owner.
    EXECUTE 'SELECT account, owner, default_owner
               FROM deleted JOIN domains ON domain = domain_of(account)
              WHERE owner <> default_owner LIMIT 1' INTO silent;
    IF silent.account IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'MS005',
            MESSAGE = format('deleting account %s would move it from %s to its domain''s default %s',
                             silent.account, silent.owner, silent.default_owner),
            HINT = 'UPDATE its owner first, or the domain''s default_owner.';
    END IF;
    EXECUTE $sql$
        INSERT INTO changes (epoch, kind, name, op, old_owner, old_state, old_login,
                             nonce, at, by, via)
        SELECT clock.epoch, 'account', d.account, 'delete', d.owner, d.state, d.login,
               clock.nonce, $1, caller(), via()
          FROM deleted d, clock
    $sql$ USING clock_timestamp();
    GET DIAGNOSTICS rows = ROW_COUNT;
    IF rows > 0 THEN
        NOTIFY mailshift;
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER tick BEFORE INSERT OR DELETE OR UPDATE OF owner, state, login ON accounts
    FOR EACH STATEMENT EXECUTE FUNCTION tick();
CREATE TRIGGER guard BEFORE INSERT OR UPDATE OR DELETE ON accounts
    FOR EACH ROW EXECUTE FUNCTION accounts_row();
CREATE TRIGGER log_insert AFTER INSERT ON accounts REFERENCING NEW TABLE AS inserted
    FOR EACH STATEMENT EXECUTE FUNCTION accounts_inserted();
CREATE TRIGGER log_update AFTER UPDATE ON accounts
    REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION accounts_updated();
CREATE TRIGGER log_delete AFTER DELETE ON accounts REFERENCING OLD TABLE AS deleted
    FOR EACH STATEMENT EXECUTE FUNCTION accounts_deleted();

-- ---- Triggers: aliases -----------------------------------------------------------------------------

CREATE FUNCTION aliases_row() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF NEW.alias <> OLD.alias THEN
            RAISE EXCEPTION USING ERRCODE = 'MS006',
                MESSAGE = format('alias %s cannot be renamed', OLD.alias),
                HINT = 'DELETE it and INSERT the new name.';
        END IF;
        NEW.epoch := OLD.epoch;
        IF NEW.account = OLD.account AND NEW.login = OLD.login THEN
            RETURN NEW;
        END IF;
    END IF;
    NEW.epoch := ticked_epoch();
    RETURN NEW;
END
$$;

CREATE FUNCTION aliases_inserted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    clash text;
    rows bigint;
BEGIN
    EXECUTE 'SELECT alias FROM inserted JOIN accounts ON accounts.account = alias LIMIT 1' INTO clash;
    IF clash IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'MS007',
            MESSAGE = format('%s is an account and cannot be an alias, too', clash),
            HINT = 'DELETE the account first.';
    END IF;
    EXECUTE $sql$
        INSERT INTO changes (epoch, kind, name, op, new_account, new_login, nonce, at, by, via)
        SELECT i.epoch, 'alias', i.alias, 'insert', i.account, i.login,
               clock.nonce, $1, caller(), via()
          FROM inserted i, clock
    $sql$ USING clock_timestamp();
    GET DIAGNOSTICS rows = ROW_COUNT;
    IF rows > 0 THEN
        NOTIFY mailshift;
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION aliases_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    rows bigint;
BEGIN
    EXECUTE $sql$
        INSERT INTO changes (epoch, kind, name, op, old_account, new_account, old_login, new_login,
                             nonce, at, by, via)
        SELECT n.epoch, 'alias', n.alias, 'update', o.account, n.account, o.login, n.login,
               clock.nonce, $1, caller(), via()
          FROM before o JOIN after n USING (alias), clock
         WHERE (o.account, o.login) IS DISTINCT FROM (n.account, n.login)
    $sql$ USING clock_timestamp();
    GET DIAGNOSTICS rows = ROW_COUNT;
    IF rows > 0 THEN
        NOTIFY mailshift;
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION aliases_deleted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    rows bigint;
BEGIN
    EXECUTE $sql$
        INSERT INTO changes (epoch, kind, name, op, old_account, old_login, nonce, at, by, via)
        SELECT clock.epoch, 'alias', d.alias, 'delete', d.account, d.login,
               clock.nonce, $1, caller(), via()
          FROM deleted d, clock
    $sql$ USING clock_timestamp();
    GET DIAGNOSTICS rows = ROW_COUNT;
    IF rows > 0 THEN
        NOTIFY mailshift;
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER tick BEFORE INSERT OR DELETE OR UPDATE OF account, login ON aliases
    FOR EACH STATEMENT EXECUTE FUNCTION tick();
CREATE TRIGGER guard BEFORE INSERT OR UPDATE ON aliases
    FOR EACH ROW EXECUTE FUNCTION aliases_row();
CREATE TRIGGER log_insert AFTER INSERT ON aliases REFERENCING NEW TABLE AS inserted
    FOR EACH STATEMENT EXECUTE FUNCTION aliases_inserted();
CREATE TRIGGER log_update AFTER UPDATE ON aliases
    REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION aliases_updated();
CREATE TRIGGER log_delete AFTER DELETE ON aliases REFERENCING OLD TABLE AS deleted
    FOR EACH STATEMENT EXECUTE FUNCTION aliases_deleted();

-- ---- Triggers: domains -----------------------------------------------------------------------------

CREATE FUNCTION domains_row() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF NEW.domain <> OLD.domain THEN
            RAISE EXCEPTION USING ERRCODE = 'MS006',
                MESSAGE = format('domain %s cannot be renamed', OLD.domain),
                HINT = 'DELETE it and INSERT the new name.';
        END IF;
        NEW.epoch := OLD.epoch;
        IF NEW.default_owner IS NOT DISTINCT FROM OLD.default_owner
            AND NEW.subaddress_delimiter = OLD.subaddress_delimiter
        THEN
            RETURN NEW;
        END IF;
    END IF;
    NEW.epoch := ticked_epoch();
    RETURN NEW;
END
$$;

CREATE FUNCTION domains_inserted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    rows bigint;
BEGIN
    EXECUTE $sql$
        INSERT INTO changes (epoch, kind, name, op, new_default_owner, new_subaddress_delimiter,
                             nonce, at, by, via)
        SELECT i.epoch, 'domain', i.domain, 'insert', i.default_owner, i.subaddress_delimiter,
               clock.nonce, $1, caller(), via()
          FROM inserted i, clock
    $sql$ USING clock_timestamp();
    GET DIAGNOSTICS rows = ROW_COUNT;
    IF rows > 0 THEN
        NOTIFY mailshift;
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION domains_updated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    rows bigint;
BEGIN
    EXECUTE $sql$
        INSERT INTO changes (epoch, kind, name, op, old_default_owner, new_default_owner,
                             old_subaddress_delimiter, new_subaddress_delimiter, nonce, at, by, via)
        SELECT n.epoch, 'domain', n.domain, 'update', o.default_owner, n.default_owner,
               o.subaddress_delimiter, n.subaddress_delimiter,
               clock.nonce, $1, caller(), via()
          FROM before o JOIN after n USING (domain), clock
         WHERE (o.default_owner, o.subaddress_delimiter)
               IS DISTINCT FROM (n.default_owner, n.subaddress_delimiter)
    $sql$ USING clock_timestamp();
    GET DIAGNOSTICS rows = ROW_COUNT;
    IF rows > 0 THEN
        NOTIFY mailshift;
    END IF;
    RETURN NULL;
END
$$;

CREATE FUNCTION domains_deleted() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    rows bigint;
BEGIN
    EXECUTE $sql$
        INSERT INTO changes (epoch, kind, name, op, old_default_owner, old_subaddress_delimiter,
                             nonce, at, by, via)
        SELECT clock.epoch, 'domain', d.domain, 'delete', d.default_owner, d.subaddress_delimiter,
               clock.nonce, $1, caller(), via()
          FROM deleted d, clock
    $sql$ USING clock_timestamp();
    GET DIAGNOSTICS rows = ROW_COUNT;
    IF rows > 0 THEN
        NOTIFY mailshift;
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER tick BEFORE INSERT OR DELETE OR UPDATE OF default_owner, subaddress_delimiter ON domains
    FOR EACH STATEMENT EXECUTE FUNCTION tick();
CREATE TRIGGER guard BEFORE INSERT OR UPDATE ON domains
    FOR EACH ROW EXECUTE FUNCTION domains_row();
CREATE TRIGGER log_insert AFTER INSERT ON domains REFERENCING NEW TABLE AS inserted
    FOR EACH STATEMENT EXECUTE FUNCTION domains_inserted();
CREATE TRIGGER log_update AFTER UPDATE ON domains
    REFERENCING OLD TABLE AS before NEW TABLE AS after
    FOR EACH STATEMENT EXECUTE FUNCTION domains_updated();
CREATE TRIGGER log_delete AFTER DELETE ON domains REFERENCING OLD TABLE AS deleted
    FOR EACH STATEMENT EXECUTE FUNCTION domains_deleted();

-- ---- Triggers: what nobody may do ------------------------------------------------------------------

CREATE FUNCTION refuse() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    IF TG_TABLE_NAME = 'changes' AND TG_OP = 'DELETE'
        AND via() = 'prune_changes'
    THEN
        RETURN NULL;
    END IF;
    RAISE EXCEPTION USING ERRCODE = 'MS006',
        MESSAGE = format('%s of %s is refused', TG_OP, TG_TABLE_NAME),
        HINT = TG_ARGV[0];
END
$$;

CREATE TRIGGER no_truncate BEFORE TRUNCATE ON accounts FOR EACH STATEMENT
    EXECUTE FUNCTION refuse('DELETE says which accounts would change their owner by it.');
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON aliases FOR EACH STATEMENT
    EXECUTE FUNCTION refuse('Use DELETE: the nodes are told of it.');
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON domains FOR EACH STATEMENT
    EXECUTE FUNCTION refuse('Use DELETE: the nodes are told of it.');
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON changes FOR EACH STATEMENT
    EXECUTE FUNCTION refuse('It is the audit; prune_changes(interval) removes what is old.');
CREATE TRIGGER one_row BEFORE INSERT OR DELETE OR TRUNCATE ON clock FOR EACH STATEMENT
    EXECUTE FUNCTION refuse('It has one row.');
CREATE TRIGGER one_row BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON database FOR EACH STATEMENT
    EXECUTE FUNCTION refuse('It has one row, which never changes.');

CREATE FUNCTION clock_row() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    IF NEW.epoch <= OLD.epoch THEN
        RAISE EXCEPTION USING ERRCODE = 'MS006', MESSAGE = 'the clock only goes forward';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER forward BEFORE UPDATE ON clock FOR EACH ROW EXECUTE FUNCTION clock_row();

-- ---- Settled ---------------------------------------------------------------------------------------

-- The last change of what an account is routed by: its row, and any row of that name before; aliases
-- that lead to it or have led to it; and, where it has no row, what decides instead: its domain and the
-- domain's catch-all. NULL for a name that nothing in the table is about.
CREATE FUNCTION last_change(account text) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
BEGIN ATOMIC
    SELECT greatest(
        (SELECT a.epoch FROM accounts a WHERE a.account = last_change.account),
        (SELECT max(c.epoch) FROM changes c
          WHERE c.name = last_change.account AND c.kind IN ('account', 'alias')),
        (SELECT max(c.epoch) FROM changes c WHERE c.new_account = last_change.account),
        (SELECT max(c.epoch) FROM changes c WHERE c.old_account = last_change.account),
        CASE WHEN NOT EXISTS (SELECT FROM accounts a WHERE a.account = last_change.account) THEN
            greatest(
                (SELECT d.epoch FROM domains d WHERE d.domain = domain_of(last_change.account)),
                (SELECT max(c.epoch) FROM changes c
                  WHERE c.name = domain_of(last_change.account) AND c.kind = 'domain'),
                (SELECT max(c.epoch) FROM changes c
                  WHERE c.name = '*@' || domain_of(last_change.account)
                    AND c.kind IN ('account', 'alias')))
        END);
END;

-- How far each node is with the last change of an account. `waiting`: it has not read it. `busy`: it
-- has, and older work still runs there. `seen`: applied. `lapsed` and `forgotten` nodes serve nothing.
-- The change is settled when no node is waiting or busy. A name that nothing is about is an error: no
-- rows would read as settled.
CREATE FUNCTION node_status(account text)
RETURNS TABLE (node text, service text, status text, sessions bigint, deliveries bigint,
               in_doubt bigint)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    last_epoch bigint := last_change(node_status.account);
BEGIN
    IF last_epoch IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'MS004',
            MESSAGE = format('there is no account %s', node_status.account),
            DETAIL = 'Neither it nor its domain has or had a row.';
    END IF;
    RETURN QUERY
        SELECT n.node, n.service,
               CASE WHEN n.forgotten THEN 'forgotten'
                    WHEN n.lease_until < clock_timestamp() THEN 'lapsed'
                    WHEN b.account IS NOT NULL THEN 'busy'
                    WHEN n.seen_epoch < last_epoch THEN 'waiting'
                    ELSE 'seen' END,
               coalesce(b.sessions, 0), coalesce(b.deliveries, 0), coalesce(b.in_doubt, 0)
          FROM nodes n
          LEFT JOIN busy b
            ON (b.node, b.service) = (n.node, n.service) AND b.account = node_status.account
         ORDER BY n.node, n.service;
END
$$;

-- One row for each account. With a condition on `account`, or on `epoch` and `settled`. Settled is what
-- is for node_status: aliases that lead to the account, or have, count as well.
CREATE VIEW flip_status AS
SELECT a.account, a.owner, a.state, a.epoch, a.flipped_at, s.*
  FROM accounts a
 CROSS JOIN LATERAL (
    SELECT greatest(a.epoch,
                    (SELECT max(c.epoch) FROM changes c WHERE c.new_account = a.account),
                    (SELECT max(c.epoch) FROM changes c WHERE c.old_account = a.account)) AS epoch
 ) last
 CROSS JOIN LATERAL (
    SELECT NOT coalesce(bool_or(n.live AND (n.seen_epoch < last.epoch OR b.account IS NOT NULL)), false)
               AS settled,
           string_agg(n.name, ', ' ORDER BY n.name)
               FILTER (WHERE n.live AND b.account IS NULL AND n.seen_epoch < last.epoch) AS waiting,
           string_agg(n.name, ', ' ORDER BY n.name)
               FILTER (WHERE n.live AND b.account IS NOT NULL) AS busy,
           string_agg(n.name, ', ' ORDER BY n.name)
               FILTER (WHERE NOT n.live AND NOT n.forgotten) AS lapsed,
           string_agg(n.name, ', ' ORDER BY n.name) FILTER (WHERE n.forgotten) AS forgotten,
           coalesce(sum(b.sessions) FILTER (WHERE n.live), 0)::bigint AS sessions,
           coalesce(sum(b.deliveries) FILTER (WHERE n.live), 0)::bigint AS deliveries,
           coalesce(sum(b.in_doubt) FILTER (WHERE n.live), 0)::bigint AS in_doubt
      FROM (SELECT node, service, node || '/' || service AS name, seen_epoch, forgotten,
                   NOT forgotten AND lease_until >= clock_timestamp() AS live
              FROM nodes) n
      LEFT JOIN busy b ON (b.node, b.service) = (n.node, n.service) AND b.account = a.account
 ) s;

-- ---- Functions -------------------------------------------------------------------------------------

CREATE FUNCTION require_read_committed() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION USING ERRCODE = 'MS009',
            MESSAGE = 'this function needs the isolation level READ COMMITTED';
    END IF;
END
$$;

CREATE FUNCTION require_lease(lease interval) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp
AS $$
BEGIN
    IF lease IS NULL OR lease <= interval '0' OR lease > interval '1 hour' THEN
        RAISE EXCEPTION USING ERRCODE = 'MS009',
            MESSAGE = 'a lease is longer than 0 and at most 1 hour',
            HINT = 'A hold without lease is made and ended by hand: UPDATE accounts SET state = …';
    END IF;
END
$$;

-- Refuses a backend's name that a live node lacks or knows under other addresses.
CREATE FUNCTION require_owner(owner text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    lacking text;
    different text;
BEGIN
    SELECT string_agg(n.node || '/' || n.service, ', ' ORDER BY n.node, n.service) INTO lacking
      FROM nodes n
     WHERE NOT n.forgotten AND n.lease_until >= clock_timestamp()
       AND (n.backends -> require_owner.owner) IS NULL;
    IF owner IS NULL OR lacking IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'MS008',
            MESSAGE = format('backend %L is not configured on %s', owner, coalesce(lacking, 'any node'));
    END IF;
    SELECT string_agg(n.node || '/' || n.service, ', ' ORDER BY n.node, n.service) INTO different
      FROM nodes n
     WHERE NOT n.forgotten AND n.lease_until >= clock_timestamp()
    HAVING count(DISTINCT n.backends -> require_owner.owner) > 1;
    IF different IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'MS008',
            MESSAGE = format('backend %L has different addresses on %s', owner, different);
    END IF;
END
$$;

-- The owner at which a name that has no row gets one so that nothing changes by it: its domain's default,
-- NULL where there is none. A name that lives by another's row is refused: a sub-address by its mailbox's,
-- and the mail of every name by that of the domain's catch-all.
CREATE FUNCTION owner_without_row(name text) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    d domains;
    mailbox text;
    catch_all text;
    a accounts;
BEGIN
    SELECT * INTO d FROM domains WHERE domain = domain_of(name);
    -- What stands before the first delimiter; nothing before it, and there is no detail.
    IF strpos(left(name, -1 - length(d.domain)), d.subaddress_delimiter) > 1 THEN
        mailbox := split_part(name, d.subaddress_delimiter, 1) || '@' || d.domain;
        RAISE EXCEPTION USING ERRCODE = 'MS010',
            MESSAGE = format('%s is a sub-address of %s and lives by its row', name, mailbox),
            HINT = format('Name %s, or make a row for the sub-address alone: mailshift accounts import, or '
                          'INSERT.', mailbox);
    END IF;
    catch_all := '*@' || d.domain;
    SELECT * INTO a FROM accounts
     WHERE account = coalesce((SELECT s.account FROM aliases s WHERE s.alias = catch_all), catch_all);
    IF FOUND AND (a.owner IS DISTINCT FROM d.default_owner OR a.state = 'held') THEN
        RAISE EXCEPTION USING ERRCODE = 'MS010',
            MESSAGE = format('%s has no row: its mail goes by the catch-all %s (%s%s), its logins by the '
                             'default owner of %s (%s)', name, catch_all, a.owner,
                             CASE WHEN a.state = 'held' THEN ', held' ELSE '' END, d.domain,
                             coalesce(d.default_owner, 'none')),
            HINT = CASE WHEN a.owner = d.default_owner THEN 'End the hold of the catch-all first.'
                   ELSE 'Make its row where its mailbox is: mailshift accounts import, or INSERT.' END;
    END IF;
    RETURN d.default_owner;
END
$$;

-- Gives an account that has no row one at its domain's default owner. Nothing changes by it. Returns that
-- owner; NULL when the row was there.
CREATE FUNCTION ensure_account(account text) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
    SET lock_timeout = '5s'
AS $$
DECLARE
    before text;
    other text;
    lived_at text;
BEGIN
    IF EXISTS (SELECT FROM accounts a WHERE a.account = ensure_account.account) THEN
        RETURN NULL;
    END IF;
    -- From here on nobody else changes what is read below. The INSERT itself locks the clock too late: it
    -- reads the default owner as it was before it waited for that.
    PERFORM FROM clock FOR UPDATE;
    -- Two at once: the second one has waited for the clock, and the row is there.
    IF EXISTS (SELECT FROM accounts a WHERE a.account = ensure_account.account) THEN
        RETURN NULL;
    END IF;
    SELECT s.account INTO other FROM aliases s WHERE s.alias = ensure_account.account;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'MS004',
            MESSAGE = format('%s is an alias of %s', ensure_account.account, other),
            HINT = 'Name the account itself.';
    END IF;
    lived_at := owner_without_row(ensure_account.account);
    IF lived_at IS NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'MS004',
            MESSAGE = format('there is no account %s', ensure_account.account),
            DETAIL = 'It has no row, and its domain has no default owner.';
    END IF;
    before := set_via('ensure_account');
    INSERT INTO accounts (account, owner) VALUES (ensure_account.account, lived_at);
    PERFORM set_via(before);
    RETURN lived_at;
END
$$;

-- Says why a holder's UPDATE found no row.
CREATE FUNCTION refuse_holder(account text, token text, must_be_fenced boolean DEFAULT false)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    a accounts;
BEGIN
    SELECT * INTO a FROM accounts WHERE accounts.account = refuse_holder.account;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'MS004',
            MESSAGE = format('there is no account %s', refuse_holder.account);
    ELSIF a.state <> 'held' THEN
        RAISE EXCEPTION USING ERRCODE = 'MS002',
            MESSAGE = format('account %s is not held (any more); its owner is %s', a.account, a.owner);
    ELSIF a.hold_token IS DISTINCT FROM token THEN
        RAISE EXCEPTION USING ERRCODE = 'MS002',
            MESSAGE = format('account %s is held, but not under this token', a.account);
    ELSIF must_be_fenced AND NOT a.fenced THEN
        RAISE EXCEPTION USING ERRCODE = 'MS003',
            MESSAGE = format('account %s is not fenced', a.account),
            HINT = 'Call fence(account, token) until no node is waiting or busy.';
    END IF;
    -- It would have matched now: the row changed under the UPDATE.
    RAISE EXCEPTION USING ERRCODE = 'serialization_failure',
        MESSAGE = format('account %s changed at this moment', a.account),
        HINT = 'Try again.';
END
$$;

-- Begins a hold: from its commit on nobody serves the account. Returns the holder's token.
CREATE FUNCTION hold(account text, lease interval) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
    SET lock_timeout = '5s'
AS $$
DECLARE
    before text := set_via('hold');
    token text := gen_random_uuid()::text;
    a accounts;
BEGIN
    PERFORM require_read_committed();
    PERFORM require_lease(lease);
    PERFORM ensure_account(hold.account);
    UPDATE accounts SET state = 'held', hold_token = token, hold_until = clock_timestamp() + lease
     WHERE accounts.account = hold.account AND state = 'active';
    IF FOUND THEN
        PERFORM set_via(before);
        RETURN token;
    END IF;
    SELECT * INTO a FROM accounts WHERE accounts.account = hold.account;
    RAISE EXCEPTION USING ERRCODE = 'MS001',
        MESSAGE = format('account %s is held already, %s', hold.account,
                         coalesce('until ' || a.hold_until, 'without end'));
END
$$;

-- Prolongs a hold: its lease starts again now. Does not touch the clock. Returns the new end.
CREATE FUNCTION renew(account text, token text, lease interval) RETURNS timestamptz
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
    SET lock_timeout = '5s'
AS $$
DECLARE
    before text := set_via('renew');
    until timestamptz;
BEGIN
    PERFORM require_read_committed();
    PERFORM require_lease(lease);
    UPDATE accounts SET hold_until = clock_timestamp() + lease
     WHERE accounts.account = renew.account AND state = 'held' AND hold_token = token
    RETURNING hold_until INTO until;
    IF NOT FOUND THEN
        PERFORM refuse_holder(renew.account, token);
    END IF;
    PERFORM set_via(before);
    RETURN until;
END
$$;

-- Ends a hold; the owner stays.
CREATE FUNCTION release(account text, token text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
    SET lock_timeout = '5s'
AS $$
DECLARE
    before text := set_via('release');
BEGIN
    PERFORM require_read_committed();
    UPDATE accounts SET state = 'active'
     WHERE accounts.account = release.account AND state = 'held' AND hold_token = token;
    IF NOT FOUND THEN
        PERFORM refuse_holder(release.account, token);
    END IF;
    PERFORM set_via(before);
END
$$;

-- Asks whether every live node has applied the hold: one row for each node, see node_status. When none
-- is waiting or busy the row becomes `fenced`, and flip is allowed.
CREATE FUNCTION fence(account text, token text)
RETURNS TABLE (node text, service text, status text, sessions bigint, deliveries bigint,
               in_doubt bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
    SET lock_timeout = '5s'
AS $$
DECLARE
    before text := set_via('fence');
    held_epoch bigint;
    found_nodes jsonb;
BEGIN
    PERFORM require_read_committed();
    SELECT a.epoch INTO held_epoch FROM accounts a
     WHERE a.account = fence.account AND a.state = 'held' AND a.hold_token = token;
    IF NOT FOUND THEN
        PERFORM refuse_holder(fence.account, token);
    END IF;
    -- One look at all nodes decides and is returned.
    SELECT coalesce(jsonb_agg(s), '[]') INTO found_nodes FROM node_status(fence.account) s;
    IF NOT found_nodes @? '$[*].status ? (@ == "waiting" || @ == "busy")' THEN
        UPDATE accounts a SET fenced = true
         WHERE a.account = fence.account AND a.state = 'held' AND a.hold_token = token
           AND a.epoch = held_epoch;
        IF NOT FOUND THEN
            PERFORM refuse_holder(fence.account, token);
        END IF;
    END IF;
    PERFORM set_via(before);
    RETURN QUERY
        SELECT s.* FROM jsonb_to_recordset(found_nodes)
            AS s(node text, service text, status text, sessions bigint, deliveries bigint,
                 in_doubt bigint);
END
$$;

-- Gives a held and fenced account to `owner` and ends the hold.
CREATE FUNCTION flip(account text, owner text, token text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
    SET lock_timeout = '5s'
AS $$
DECLARE
    before text := set_via('flip');
BEGIN
    PERFORM require_read_committed();
    PERFORM require_owner(flip.owner);
    UPDATE accounts SET owner = flip.owner, state = 'active'
     WHERE accounts.account = flip.account AND state = 'held' AND hold_token = token AND fenced;
    IF NOT FOUND THEN
        PERFORM refuse_holder(flip.account, token, true);
    END IF;
    PERFORM set_via(before);
END
$$;

-- Ends the holds whose lease is over; their owners stay. Called by every node once a second, so it
-- locks nothing when there is nothing to do. Returns how many it ended.
CREATE FUNCTION expire_holds() RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    before text;
    judged_at timestamptz := clock_timestamp();
    ended bigint;
BEGIN
    PERFORM FROM accounts WHERE state = 'held' AND hold_until < judged_at LIMIT 1;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    PERFORM require_read_committed();
    before := set_via('expire_holds');
    -- What was renewed or flipped while this waited for the clock no longer matches.
    UPDATE accounts SET state = 'active' WHERE state = 'held' AND hold_until < judged_at;
    GET DIAGNOSTICS ended = ROW_COUNT;
    PERFORM set_via(before);
    RETURN ended;
END
$$;

-- Holds a name, without end, because two histories lead it to two owners: only an operator decides.
-- `believed_owner` is what a node knew. A name without a row gets one there; so does an alias, which is
-- deleted, so that the name itself is held and not its account. A holder's token ends. True when this call
-- made the dispute, false when it was there.
CREATE FUNCTION dispute(account text, believed_owner text, reason text) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
    SET lock_timeout = '5s'
AS $$
DECLARE
    before text := set_via('dispute');
    made boolean;
    alias_of text;
BEGIN
    PERFORM require_read_committed();
    -- From here on nobody else changes what is read below; two nodes come one after the other.
    PERFORM FROM clock FOR UPDATE;
    IF NOT EXISTS (SELECT FROM accounts a WHERE a.account = dispute.account) THEN
        SELECT s.account INTO alias_of FROM aliases s WHERE s.alias = dispute.account;
        IF FOUND THEN
            DELETE FROM aliases s WHERE s.alias = dispute.account;
        END IF;
        INSERT INTO accounts (account, owner, state)
        VALUES (dispute.account, believed_owner, 'held');
    END IF;
    UPDATE accounts
       SET state = 'held', hold_token = NULL, hold_until = NULL,
           disputed = concat_ws('; ', reason, 'it was an alias of ' || alias_of)
     WHERE accounts.account = dispute.account AND disputed IS NULL;
    made := FOUND;
    PERFORM set_via(before);
    RETURN made;
END
$$;

-- Moves the clock above every epoch that anybody has seen, after history was lost or restored.
-- Returns the new epoch.
CREATE FUNCTION raise_clock(above bigint) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
    SET lock_timeout = '5s'
AS $$
DECLARE
    raised bigint;
BEGIN
    UPDATE clock SET
        epoch = 1 + greatest(epoch, above,
                             (SELECT max(c.epoch) FROM changes c),
                             (SELECT max(a.epoch) FROM accounts a),
                             (SELECT max(s.epoch) FROM aliases s),
                             (SELECT max(d.epoch) FROM domains d)),
        nonce = ('x' || left(translate(gen_random_uuid()::text, '-', ''), 16))::bit(64)::bigint,
        xact = pg_current_xact_id()
    RETURNING epoch INTO raised;
    RETURN raised;
END
$$;

-- Removes changes older than `keep`. The newest one stays, and all that a node has yet to read: a node
-- whose last change is gone takes it for lost history. Returns how many went.
CREATE FUNCTION prune_changes(keep interval) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    before text := set_via('prune_changes');
    gone bigint;
BEGIN
    IF keep IS NULL OR keep < interval '1 day' THEN
        RAISE EXCEPTION USING ERRCODE = 'MS009', MESSAGE = 'at least one day of changes is kept';
    END IF;
    DELETE FROM changes
     WHERE at < clock_timestamp() - keep
       AND epoch < (SELECT max(c.epoch) FROM changes c)
       AND epoch < coalesce((SELECT min(n.seen_epoch) FROM nodes n WHERE NOT n.forgotten),
                            9223372036854775807);
    GET DIAGNOSTICS gone = ROW_COUNT;
    PERFORM set_via(before);
    RETURN gone;
END
$$;

-- ---- Views -----------------------------------------------------------------------------------------

-- How many accounts each owner has, domain by domain.
CREATE VIEW migration_progress AS
SELECT domain_of(a.account) AS domain,
       a.owner,
       a.owner IS NOT DISTINCT FROM d.default_owner AS is_default,
       count(*) AS accounts,
       count(*) FILTER (WHERE a.state = 'held') AS held,
       max(a.flipped_at) AS last_flip
  FROM accounts a LEFT JOIN domains d ON d.domain = domain_of(a.account)
 GROUP BY 1, 2, 3
 ORDER BY 1, 2;

-- Every account that was flipped, and whether it can go back without loss. `untouched` only where every
-- node that may have served it since then has told what it did; `unknown` where one has not, or did not
-- live to tell.
CREATE VIEW reversible_accounts AS
SELECT a.account, a.owner, a.former_owner, a.flipped_at,
       CASE WHEN t.account IS NOT NULL THEN 'touched'
            WHEN NOT EXISTS (SELECT FROM nodes n WHERE n.activity_at >= a.flipped_at)
              OR EXISTS (SELECT FROM nodes n
                          WHERE n.lease_until >= a.flipped_at
                            AND (n.forgotten OR n.lease_until < clock_timestamp()
                                 OR n.activity_at IS NULL OR n.activity_at < a.flipped_at))
            THEN 'unknown'
            ELSE 'untouched' END AS touched,
       coalesce(t.logins, 0) AS logins, t.first_login, t.last_login,
       coalesce(t.deliveries, 0) AS deliveries, t.first_delivery, t.last_delivery
  FROM accounts a
  LEFT JOIN activity t
    ON t.account = a.account AND t.owner = a.owner AND t.epoch >= a.flip_epoch
 WHERE a.flip_epoch IS NOT NULL;

-- Every address with a row, and who takes its mail. Bare login names are no addresses.
CREATE VIEW addresses AS
SELECT a.account AS address, a.account, a.owner, a.state
  FROM accounts a WHERE strpos(a.account, '@') > 0
UNION ALL
SELECT s.alias, a.account, a.owner, a.state
  FROM aliases s JOIN accounts a USING (account) WHERE strpos(s.alias, '@') > 0;

-- Every address that `backend` must hand to us: not its own, or held. For lists and maps; a mail server
-- that asks for one recipient asks is_foreign.
CREATE FUNCTION foreign_addresses(backend text) RETURNS TABLE (address text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
BEGIN ATOMIC
    SELECT v.address FROM addresses v
     WHERE v.owner <> foreign_addresses.backend OR v.state = 'held';
END;

-- The same question for one recipient, by index and answered as the services do: row, sub-address,
-- catch-all, the domain's default owner. NULL for an address that is not one of ours.
CREATE FUNCTION is_foreign(backend text, recipient text) RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
AS $$
DECLARE
    full_name text := lower(recipient COLLATE "C");
    d domains;
    name text;
    answer boolean;
BEGIN
    SELECT * INTO d FROM domains WHERE domain = domain_of(full_name);
    FOREACH name IN ARRAY ARRAY[
        full_name,
        CASE WHEN d.subaddress_delimiter <> '' THEN
            split_part(full_name, d.subaddress_delimiter, 1) || '@' || d.domain END,
        '*@' || d.domain]
    LOOP
        SELECT a.owner <> backend OR a.state = 'held' INTO answer FROM accounts a
         WHERE a.account = coalesce((SELECT s.account FROM aliases s WHERE s.alias = name), name);
        IF FOUND THEN
            RETURN answer;
        END IF;
    END LOOP;
    RETURN d.default_owner <> backend;
END
$$;

-- ---- Rights ----------------------------------------------------------------------------------------

-- Nobody but the owner until roles.sql says otherwise.
REVOKE ALL ON FUNCTION
    tick(), ticked_epoch(), accounts_row(), accounts_inserted(), accounts_updated(),
    accounts_deleted(), aliases_row(), aliases_inserted(), aliases_updated(), aliases_deleted(),
    domains_row(), domains_inserted(), domains_updated(), domains_deleted(), refuse(), clock_row(),
    last_change(text), node_status(text), set_via(text), require_owner(text),
    owner_without_row(text), ensure_account(text), refuse_holder(text, text, boolean),
    hold(text, interval), renew(text, text, interval),
    release(text, text), fence(text, text), flip(text, text, text), expire_holds(),
    dispute(text, text, text), raise_clock(bigint), prune_changes(interval),
    foreign_addresses(text), is_foreign(text, text)
FROM PUBLIC;
