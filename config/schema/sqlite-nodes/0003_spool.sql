-- Mail that a node keeps on its own disk. See ../postgres for what the columns mean.

ALTER TABLE nodes ADD COLUMN spooled INTEGER NOT NULL DEFAULT 0 CHECK (spooled >= 0);
ALTER TABLE nodes ADD COLUMN spool_oldest TEXT;
ALTER TABLE nodes ADD COLUMN stopped_at TEXT;
