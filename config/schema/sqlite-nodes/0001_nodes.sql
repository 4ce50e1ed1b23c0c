-- What the services of one host say about themselves, in a file of its own: they write it each second
-- and never make the shell wait at the ownership table. See ../postgres for what the columns mean.

CREATE TABLE nodes (
    node        TEXT NOT NULL,
    service     TEXT NOT NULL CHECK (service IN ('mx-gateway', 'login-proxy')),
    incarnation TEXT NOT NULL,
    version     TEXT NOT NULL,
    lease_until TEXT NOT NULL,
    seen_epoch  INTEGER NOT NULL DEFAULT 0,
    listen      INTEGER NOT NULL DEFAULT 0 CHECK (listen IN (0, 1)),
    backends    TEXT NOT NULL DEFAULT '{}' CHECK (json_type(backends) = 'object'),
    started_at  TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    updated_at  TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    activity_at TEXT,
    forgotten   INTEGER NOT NULL DEFAULT 0 CHECK (forgotten IN (0, 1)),
    PRIMARY KEY (node, service)
) STRICT, WITHOUT ROWID;

CREATE TABLE busy (
    node       TEXT NOT NULL,
    service    TEXT NOT NULL,
    account    TEXT NOT NULL,
    epoch      INTEGER NOT NULL,
    sessions   INTEGER NOT NULL DEFAULT 0,
    deliveries INTEGER NOT NULL DEFAULT 0,
    in_doubt   INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (node, service, account)
) STRICT, WITHOUT ROWID;
CREATE INDEX busy_account ON busy (account);

CREATE TABLE activity (
    account        TEXT NOT NULL,
    owner          TEXT NOT NULL,
    epoch          INTEGER NOT NULL,
    first_login    TEXT,
    last_login     TEXT,
    first_delivery TEXT,
    last_delivery  TEXT,
    logins         INTEGER NOT NULL DEFAULT 0,
    deliveries     INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (account, owner)
) STRICT, WITHOUT ROWID;

-- A row of nodes takes its rows of busy along.
CREATE TRIGGER nodes_deleted AFTER DELETE ON nodes
BEGIN
    DELETE FROM busy WHERE node = OLD.node AND service = OLD.service;
END;
