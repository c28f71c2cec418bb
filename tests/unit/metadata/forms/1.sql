-- Form 1, the first.
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
    backend_ref TEXT NOT NULL, expected TEXT NOT NULL, expires_at INTEGER NOT NULL,
    PRIMARY KEY (namespace, ref)
) WITHOUT ROWID;

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
INSERT INTO sequence VALUES (1);
INSERT INTO namespaces VALUES ('ns', '{"a":"b"}');
INSERT INTO containers VALUES ('ns', 'c', 'image', 'runtime', 'overlayfs', 'key', '{}', NULL, x'0a0163');
INSERT INTO images VALUES ('ns', 'image', 'sha256:1', 'm', '{}', NULL, x'0a05696d616765');
INSERT INTO content VALUES ('ns', 'sha256:1', 3, 1, 2, '{"l":"v"}', NULL);
INSERT INTO ingests VALUES ('ns', 'upload', 'ns/7/upload', 'sha256:2', 1700000000000000000);
INSERT INTO snapshots VALUES ('ns', 'overlayfs', 'key', 'ns/8/key', '', 2, 1, 2, '{}', NULL);
INSERT INTO leases VALUES ('ns', 'lease', 5, '{}');
INSERT INTO lease_resources VALUES ('ns', 'lease', 'content', 'sha256:1');
INSERT INTO sandboxes VALUES ('ns', 'pod', '{}', NULL, x'0a03706f64');
UPDATE sequence SET next = 1048577;
PRAGMA user_version = 1;
