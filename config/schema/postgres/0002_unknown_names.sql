-- Names without a row that somebody asked for: what the list of accounts lacks. Written by the services now
-- and then, a bounded number of names each; nothing is decided by it.

CREATE TABLE unknown_names (
    node     text COLLATE "C" NOT NULL,
    service  text COLLATE "C" NOT NULL CHECK (service IN ('mx-gateway', 'login-proxy')),
    name     text COLLATE "C" NOT NULL CHECK (octet_length(name) <= 254),
    -- default: the domain's default owner took it (a login was granted, a recipient accepted).
    -- refused: no such account, or not a domain of ours.
    outcome  text NOT NULL CHECK (outcome IN ('default', 'refused')),
    seen     bigint NOT NULL DEFAULT 1 CHECK (seen > 0),
    first_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (node, service, name)
);

-- Of all nodes together, without names that have got a row since then.
CREATE VIEW unknown_names_seen AS
SELECT u.name,
       (array_agg(u.outcome ORDER BY u.last_at DESC))[1] AS outcome,
       sum(u.seen)::bigint AS seen,
       string_agg(DISTINCT u.service, ', ' ORDER BY u.service) AS services,
       min(u.first_at) AS first_at,
       max(u.last_at) AS last_at
  FROM unknown_names u
 WHERE NOT EXISTS (SELECT FROM accounts a WHERE a.account = u.name)
   AND NOT EXISTS (SELECT FROM aliases s WHERE s.alias = u.name)
 GROUP BY u.name;
