"""Pure. The tables of the metadata database, newest form.

Every object belongs to a namespace, by name. ``labels`` and ``gc`` are JSON objects, ``gc`` holds
only the labels that garbage collection reads (NULL: none). ``record`` is the message the object is
served as. Times are nanoseconds since the epoch. ``sequence`` holds the first number that no
backend key has used: numbers are taken from it in blocks, so that a number is never used twice,
even when what used it was lost in a crash.

A namespace comes into being with the first object in it: a trigger on each table sees to that.

``snapshot_commits`` holds commits under way: written before the backend is asked, removed in the
transaction that renames the snapshot. What a crash leaves there is carried on at the next start.
"""

from __future__ import annotations

VERSION = 2

_TABLES = """
CREATE TABLE namespaces (
    name TEXT PRIMARY KEY, labels TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE containers (
    namespace TEXT NOT NULL, id TEXT NOT NULL,
    image TEXT NOT NULL, runtime TEXT NOT NULL, snapshotter TEXT NOT NULL,
    snapshot_key TEXT NOT NULL, labels TEXT NOT NULL, gc TEXT, record BLOB NOT NULL,
    UNIQUE (namespace, id)
);

CREATE TABLE images (
    namespace TEXT NOT NULL, name TEXT NOT NULL,
    digest TEXT NOT NULL, media_type TEXT NOT NULL, labels TEXT NOT NULL, gc TEXT,
    record BLOB NOT NULL,
    UNIQUE (namespace, name)
);

CREATE TABLE content (
    namespace TEXT NOT NULL, digest TEXT NOT NULL,
    size INTEGER NOT NULL, created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
    labels TEXT NOT NULL, gc TEXT,
    PRIMARY KEY (namespace, digest)
) WITHOUT ROWID;
CREATE INDEX content_digest ON content (digest);

CREATE TABLE ingests (
    namespace TEXT NOT NULL, ref TEXT NOT NULL,
    backend_ref TEXT NOT NULL, total INTEGER NOT NULL, expected TEXT NOT NULL,
    started_at INTEGER NOT NULL, expires_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, ref)
) WITHOUT ROWID;

CREATE INDEX ingests_expected ON ingests (expected);

CREATE TABLE snapshots (
    namespace TEXT NOT NULL, snapshotter TEXT NOT NULL, key TEXT NOT NULL,
    backend_key TEXT NOT NULL, parent TEXT NOT NULL, kind INTEGER NOT NULL,
    created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, labels TEXT NOT NULL, gc TEXT,
    PRIMARY KEY (namespace, snapshotter, key)
) WITHOUT ROWID;
CREATE INDEX snapshots_parent ON snapshots (namespace, snapshotter, parent);

CREATE TABLE snapshot_commits (
    namespace TEXT NOT NULL, snapshotter TEXT NOT NULL, name TEXT NOT NULL,
    key TEXT NOT NULL, backend_name TEXT NOT NULL, parent TEXT NOT NULL, labels TEXT NOT NULL,
    lease TEXT NOT NULL,
    PRIMARY KEY (namespace, snapshotter, name)
) WITHOUT ROWID;

CREATE TABLE leases (
    namespace TEXT NOT NULL, id TEXT NOT NULL, created_at INTEGER NOT NULL, labels TEXT NOT NULL,
    PRIMARY KEY (namespace, id)
) WITHOUT ROWID;

CREATE TABLE lease_resources (
    namespace TEXT NOT NULL, lease TEXT NOT NULL, type TEXT NOT NULL, id TEXT NOT NULL,
    PRIMARY KEY (namespace, lease, type, id)
) WITHOUT ROWID;
CREATE INDEX lease_resources_id ON lease_resources (namespace, type, id);

CREATE TABLE sandboxes (
    namespace TEXT NOT NULL, id TEXT NOT NULL, labels TEXT NOT NULL, gc TEXT,
    record BLOB NOT NULL,
    PRIMARY KEY (namespace, id)
) WITHOUT ROWID;

CREATE TABLE sequence (next INTEGER NOT NULL);
INSERT INTO sequence VALUES (1)
"""

_OWNED = ("containers", "images", "content", "ingests", "snapshots", "leases", "sandboxes")

_IMPLICIT_NAMESPACE = """
CREATE TRIGGER {table}_namespace AFTER INSERT ON {table} BEGIN
    INSERT OR IGNORE INTO namespaces VALUES (NEW.namespace, '{{}}');
END
"""

STATEMENTS = (
    *_TABLES.split(";"),
    *(_IMPLICIT_NAMESPACE.format(table=table) for table in _OWNED),
)
