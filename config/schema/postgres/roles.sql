-- Roles and their rights. Not a migration: roles belong to the whole cluster, and the role that owns the
-- table may lack CREATEROLE. Run it after every `mailshift schema apply`, as a role that may create roles
-- and owns the table (or as a superuser); it can be run again at any time:
--     psql --single-transaction -f roles.sql DATABASE        or      mailshift schema apply --roles
--
-- Then give each login its role: GRANT mailshift_service TO mx1;
-- For people: ALTER ROLE ann SET idle_in_transaction_session_timeout = '1min'; an update that is not
-- committed stops everybody else's.

DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['mailshift_service', 'mailshift_mover', 'mailshift_operator',
                                'mailshift_backend']
    LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role);
        END IF;
    END LOOP;
END
$$;

-- Before PostgreSQL 15 everybody may create objects in public, where the functions look for theirs.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public
    TO mailshift_service, mailshift_mover, mailshift_operator, mailshift_backend;

-- The services: read everything, write what they say about themselves, end holds and report disputes.
GRANT SELECT ON database, clock, domains, accounts, aliases, changes, nodes, busy, activity,
    _sqlx_migrations TO mailshift_service;
GRANT SELECT, INSERT, UPDATE, DELETE ON unknown_names TO mailshift_service;
GRANT INSERT, UPDATE, DELETE ON nodes, busy, activity TO mailshift_service;
GRANT EXECUTE ON FUNCTION expire_holds(), dispute(text, text, text), raise_clock(bigint),
    node_status(text) TO mailshift_service;

-- A mover: the functions, and everything but other movers' tokens.
GRANT SELECT (account, owner, login, state, hold_until, fenced, disputed, epoch, former_owner,
              flip_epoch, flipped_at, note, created_at) ON accounts TO mailshift_mover;
GRANT SELECT ON domains, aliases, changes, flip_status, migration_progress, reversible_accounts,
    _sqlx_migrations TO mailshift_mover;
GRANT EXECUTE ON FUNCTION hold(text, interval), renew(text, text, interval), release(text, text),
    fence(text, text), flip(text, text, text), node_status(text), require_owner(text),
    ensure_account(text) TO mailshift_mover;

-- An operator: the plain SQL, and all functions.
GRANT SELECT ON database, clock, domains, accounts, aliases, changes, nodes, busy, activity,
    _sqlx_migrations, flip_status, migration_progress, reversible_accounts, addresses, unknown_names,
    unknown_names_seen TO mailshift_operator;
GRANT DELETE ON accounts, aliases, domains, nodes, unknown_names TO mailshift_operator;
GRANT INSERT (account, owner, login, state, note), UPDATE (owner, login, state, note)
    ON accounts TO mailshift_operator;
GRANT INSERT (alias, account, login, note), UPDATE (account, login, note)
    ON aliases TO mailshift_operator;
GRANT INSERT (domain, default_owner, subaddress_delimiter, note),
    UPDATE (default_owner, subaddress_delimiter, note) ON domains TO mailshift_operator;
GRANT UPDATE (forgotten) ON nodes TO mailshift_operator;
GRANT EXECUTE ON FUNCTION hold(text, interval), renew(text, text, interval), release(text, text),
    fence(text, text), flip(text, text, text), node_status(text), require_owner(text),
    ensure_account(text), expire_holds(), dispute(text, text, text), raise_clock(bigint),
    prune_changes(interval), foreign_addresses(text), is_foreign(text, text)
    TO mailshift_operator;

-- A backend's own mail server: which recipients it must hand to us.
GRANT SELECT ON addresses TO mailshift_backend;
GRANT EXECUTE ON FUNCTION foreign_addresses(text), is_foreign(text, text) TO mailshift_backend;
