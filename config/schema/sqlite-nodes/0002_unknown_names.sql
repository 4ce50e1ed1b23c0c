-- Names without a row that somebody asked for. See ../postgres for what the columns mean.

CREATE TABLE unknown_names (
    node     TEXT NOT NULL,
    service  TEXT NOT NULL CHECK (service IN ('mx-gateway', 'login-proxy')),
    name     TEXT NOT NULL CHECK (length(name) <= 254),
    outcome  TEXT NOT NULL CHECK (outcome IN ('default', 'refused')),
    seen     INTEGER NOT NULL DEFAULT 1 CHECK (seen > 0),
    first_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    last_at  TEXT NOT NULL DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')),
    PRIMARY KEY (node, service, name)
) STRICT, WITHOUT ROWID;
