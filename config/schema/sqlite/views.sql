-- Views across both files, for one session: the second file must be attached as `nodes`.
-- `mailshift sql` does both.

CREATE TEMP VIEW flip_status AS
SELECT a.account, a.owner, a.state, a.epoch, a.flipped_at,
       NOT coalesce(max(n.live AND (n.seen_epoch < a.last_epoch OR b.account IS NOT NULL)), 0) AS settled,
       group_concat(iif(n.live AND b.account IS NULL AND n.seen_epoch < a.last_epoch, n.name, NULL), ', ')
           AS waiting,
       group_concat(iif(n.live AND b.account IS NOT NULL, n.name, NULL), ', ') AS busy,
       group_concat(iif(NOT n.live AND NOT n.forgotten, n.name, NULL), ', ') AS lapsed,
       group_concat(iif(n.forgotten, n.name, NULL), ', ') AS forgotten,
       coalesce(sum(iif(n.live, b.sessions, 0)), 0) AS sessions,
       coalesce(sum(iif(n.live, b.deliveries, 0)), 0) AS deliveries,
       coalesce(sum(iif(n.live, b.in_doubt, 0)), 0) AS in_doubt
  FROM (SELECT account, owner, state, epoch, flipped_at,
               max(epoch,
                   coalesce((SELECT max(c.epoch) FROM main.changes c WHERE c.new_account = account), 0),
                   coalesce((SELECT max(c.epoch) FROM main.changes c WHERE c.old_account = account), 0))
                   AS last_epoch
          FROM main.accounts) a
  LEFT JOIN (SELECT node, service, node || '/' || service AS name, seen_epoch, forgotten,
                    NOT forgotten AND lease_until >= strftime('%Y-%m-%d %H:%M:%f', 'now') AS live
               FROM nodes.nodes) n
  LEFT JOIN nodes.busy b
    ON b.node = n.node AND b.service = n.service AND b.account = a.account
 GROUP BY a.account;

CREATE TEMP VIEW reversible_accounts AS
SELECT a.account, a.owner, a.former_owner, a.flipped_at,
       CASE WHEN t.account IS NOT NULL THEN 'touched'
            WHEN NOT EXISTS (SELECT 1 FROM nodes.nodes n WHERE n.activity_at >= a.flipped_at)
              OR EXISTS (SELECT 1 FROM nodes.nodes n
                          WHERE n.lease_until >= a.flipped_at
                            AND (n.forgotten
                                 OR n.lease_until < strftime('%Y-%m-%d %H:%M:%f', 'now')
                                 OR n.activity_at IS NULL OR n.activity_at < a.flipped_at))
            THEN 'unknown'
            ELSE 'untouched' END AS touched,
       coalesce(t.logins, 0) AS logins, t.first_login, t.last_login,
       coalesce(t.deliveries, 0) AS deliveries, t.first_delivery, t.last_delivery
  FROM main.accounts a
  LEFT JOIN nodes.activity t
    ON t.account = a.account AND t.owner = a.owner AND t.epoch >= a.flip_epoch
 WHERE a.flip_epoch IS NOT NULL;

-- Of a group with one max() SQLite takes the other columns from the row that has it.
CREATE TEMP VIEW unknown_names_seen AS
SELECT u.name, u.outcome, sum(u.seen) AS seen,
       (SELECT group_concat(service, ', ')
          FROM (SELECT DISTINCT s.service FROM nodes.unknown_names s WHERE s.name = u.name
                 ORDER BY s.service)) AS services,
       (SELECT min(f.first_at) FROM nodes.unknown_names f WHERE f.name = u.name) AS first_at,
       max(u.last_at) AS last_at
  FROM nodes.unknown_names u
 WHERE NOT EXISTS (SELECT 1 FROM main.accounts a WHERE a.account = u.name)
   AND NOT EXISTS (SELECT 1 FROM main.aliases s WHERE s.alias = u.name)
 GROUP BY u.name;
