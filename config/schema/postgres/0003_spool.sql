-- Mail that a node keeps on its own disk. Whoever looks at a node that is gone, or gives it up, sees here that
-- there is mail which nobody delivers.

ALTER TABLE nodes
    -- Messages in its spool, dead letters not counted; when the oldest of them came.
    ADD COLUMN spooled      bigint NOT NULL DEFAULT 0 CHECK (spooled >= 0),
    ADD COLUMN spool_oldest timestamptz,
    -- A node that stops takes its row along, unless it leaves mail behind: then the row stays, and says since
    -- when. Its lease ends with it, so no fence waits.
    ADD COLUMN stopped_at   timestamptz;
