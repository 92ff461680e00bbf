BEGIN TRANSACTION;
CREATE TABLE backend_schema (
	version INTEGER NOT NULL
);
INSERT INTO "backend_schema" VALUES(1);
CREATE TABLE chunks (
	upload_no INTEGER NOT NULL, 
	seq BIGINT NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	records BIGINT NOT NULL, 
	stored_at VARCHAR(40) NOT NULL, 
	PRIMARY KEY (upload_no, seq), 
	FOREIGN KEY(upload_no) REFERENCES uploads (upload_no) ON DELETE CASCADE
)
 WITHOUT ROWID

;
INSERT INTO "chunks" VALUES(1,0,'3a7596abc0fb02ee1c4e406fd2004f507eac5f2dcfe27ea91d649e5a097d7541',1,'2026-01-01T00:00:00.000+00:00');
INSERT INTO "chunks" VALUES(2,0,'e5d5f7c1d225fd6b13623ebb1b5b9d075c705659f81868b1e37005a0923b0346',1,'2026-01-01T00:00:00.000+00:00');
INSERT INTO "chunks" VALUES(3,0,'fcb7ecf22a686fde527cafa2dd308d1c321ff6d1baddedf24668afbba85a7d64',1,'2026-01-01T00:00:00.000+00:00');
INSERT INTO "chunks" VALUES(4,0,'389d42d9a5766a33e43c9a95fe1e7555f2896ab790b0ec7e2c9dd552b9d4a44a',1,'2026-01-01T00:00:00.000+00:00');
CREATE TABLE health_reports (
	report_no INTEGER NOT NULL, 
	tenant_id INTEGER NOT NULL, 
	installation_id VARCHAR(200) NOT NULL, 
	received_at VARCHAR(40) NOT NULL, 
	report TEXT NOT NULL, 
	PRIMARY KEY (report_no)
);
CREATE TABLE installations (
	tenant_id INTEGER NOT NULL, 
	installation_id VARCHAR(200) NOT NULL, 
	first_seen_at VARCHAR(40) NOT NULL, 
	last_seen_at VARCHAR(40) NOT NULL, 
	registered_at VARCHAR(40), 
	entry TEXT, 
	version TEXT, 
	handler TEXT, 
	host TEXT, 
	methods TEXT, 
	last_upload_at VARCHAR(40), 
	health_at VARCHAR(40), 
	health_report TEXT, 
	PRIMARY KEY (tenant_id, installation_id), 
	FOREIGN KEY(tenant_id) REFERENCES tenants (tenant_id) ON DELETE CASCADE
)
 WITHOUT ROWID

;
INSERT INTO "installations" VALUES(1,'site-1','2026-01-01T00:00:00.000+00:00','2026-01-01T00:00:00.000+00:00','2026-01-01T00:00:00.000+00:00','e','','','null','null','2026-01-01T00:00:00.000+00:00',NULL,NULL);
CREATE TABLE records (
	upload_no INTEGER NOT NULL, 
	seq INTEGER NOT NULL, 
	row_index INTEGER NOT NULL, 
	payload TEXT NOT NULL, 
	PRIMARY KEY (upload_no, seq, row_index)
)
 WITHOUT ROWID

;
INSERT INTO "records" VALUES(1,0,0,'{"n": 0}');
INSERT INTO "records" VALUES(2,0,0,'{"n": 1}');
INSERT INTO "records" VALUES(3,0,0,'{"n": 2}');
INSERT INTO "records" VALUES(4,0,0,'{"n": 3}');
CREATE TABLE sources (
	source_id INTEGER NOT NULL, 
	tenant_id INTEGER NOT NULL, 
	installation_id VARCHAR(200) NOT NULL, 
	source_key TEXT NOT NULL, 
	key_digest VARCHAR(64) NOT NULL, 
	highest_seq BIGINT DEFAULT 0 NOT NULL, 
	watermark TEXT DEFAULT 'null' NOT NULL, 
	PRIMARY KEY (source_id), 
	UNIQUE (tenant_id, installation_id, key_digest), 
	FOREIGN KEY(tenant_id) REFERENCES tenants (tenant_id) ON DELETE CASCADE
);
INSERT INTO "sources" VALUES(1,1,'site-1','files','3d7db37d08f9140fd09f12b9621cd0954b6d56a9d2f357fb2c7f5d62636d2fd1',20,'null');
INSERT INTO "sources" VALUES(2,1,'site-1','orders','1c168adb00d208e42f93314529f1fa9c0427eb63233ceda95a5db52b7012a719',30,'5');
CREATE TABLE tenant_keys (
	key_id VARCHAR(16) NOT NULL, 
	tenant_id INTEGER NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	created_at VARCHAR(40) NOT NULL, 
	PRIMARY KEY (key_id), 
	FOREIGN KEY(tenant_id) REFERENCES tenants (tenant_id) ON DELETE CASCADE
);
INSERT INTO "tenant_keys" VALUES('52302e3f9334',1,'94c8cef38ab322177779ee0bd3b299794c8c21692a5a7df8b2b4476c6bfb001b','2026-01-01T00:00:00.000+00:00');
CREATE TABLE tenants (
	tenant_id INTEGER NOT NULL, 
	name VARCHAR(100) NOT NULL, 
	created_at VARCHAR(40) NOT NULL, 
	PRIMARY KEY (tenant_id), 
	UNIQUE (name)
);
INSERT INTO "tenants" VALUES(1,'skylark','2026-01-01T00:00:00.000+00:00');
CREATE TABLE uploads (
	upload_no INTEGER NOT NULL, 
	tenant_id INTEGER NOT NULL, 
	upload_id VARCHAR(200) NOT NULL, 
	state VARCHAR(12) NOT NULL, 
	visible BOOLEAN DEFAULT 0 NOT NULL, 
	opened_at VARCHAR(40) NOT NULL, 
	ended_at VARCHAR(40), 
	job_id VARCHAR(40), 
	hook_due_at VARCHAR(40), 
	hook_attempts INTEGER DEFAULT 0 NOT NULL, 
	rows_gone BOOLEAN DEFAULT 0 NOT NULL, 
	source_id INTEGER, 
	upload_key TEXT, 
	key_digest VARCHAR(64), 
	source_seq BIGINT, 
	mode VARCHAR(8), 
	chunks BIGINT, 
	records BIGINT, 
	installation_id VARCHAR(200), 
	stream TEXT, 
	source TEXT, 
	params TEXT, 
	entry TEXT, 
	version TEXT, 
	PRIMARY KEY (upload_no), 
	UNIQUE (tenant_id, upload_id), 
	FOREIGN KEY(tenant_id) REFERENCES tenants (tenant_id) ON DELETE CASCADE, 
	FOREIGN KEY(source_id) REFERENCES sources (source_id)
);
INSERT INTO "uploads" VALUES(1,1,'u0','complete',0,'2026-01-01T00:00:00.000+00:00','2026-01-01T00:00:00.000+00:00','329ab075321d4a1da436940553dd8b47',NULL,0,0,1,'u0','9dc02223da426384268a0b489b28b008464099491967f6f0597853e939953ea0',10,'replace',1,1,'site-1','flights','2013.csv','{"site":1}','e','1');
INSERT INTO "uploads" VALUES(2,1,'u1','complete',1,'2026-01-01T00:00:00.000+00:00','2026-01-01T00:00:00.000+00:00','f85b0632381243e189a127a8bb1c9d52',NULL,0,0,1,'u1','bb82030dbc2bcaba32a90bf2e207a84a856fc5f033b77c480836ab6f77f40f19',20,'replace',1,1,'site-1','flights','2013.csv','{"site":1}','e','1');
INSERT INTO "uploads" VALUES(3,1,'u2','complete',1,'2026-01-01T00:00:00.000+00:00','2026-01-01T00:00:00.000+00:00','27a900b704fc451989581c84c134118f',NULL,0,0,2,'u2','6ca202c88e549dff68c09bfafbfc60b2fac074debc1e6777e9ba4b6c703ed114',30,'append',1,1,'site-1','flights','sql:orders','{}','e','1');
INSERT INTO "uploads" VALUES(4,1,'u3','open',0,'2026-01-01T00:00:00.000+00:00',NULL,NULL,NULL,0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
CREATE INDEX health_by_time ON health_reports (received_at);
CREATE INDEX uploads_by_state ON uploads (state, visible, rows_gone);
CREATE INDEX uploads_by_hook ON uploads (hook_due_at);
CREATE INDEX uploads_of_source ON uploads (source_id, visible, key_digest);
CREATE INDEX chunks_by_time ON chunks (stored_at);
CREATE VIEW visible_records AS
SELECT t.name AS tenant, u.installation_id, u.stream, u.source, u.upload_id, u.source_seq,
       r.seq, r.row_index, r.payload
FROM uploads u
JOIN tenants t ON t.tenant_id = u.tenant_id
JOIN records r ON r.upload_no = u.upload_no
WHERE u.visible;
COMMIT;
