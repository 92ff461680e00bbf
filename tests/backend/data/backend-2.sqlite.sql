PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE backend_schema (
	version INTEGER NOT NULL
);
INSERT INTO backend_schema VALUES(2);
CREATE TABLE backend_generation (
	generation VARCHAR(32) NOT NULL
);
INSERT INTO backend_generation VALUES('75678d0d77f049d7a1910b9fbfde8f1c');
CREATE TABLE tenants (
	tenant_id INTEGER NOT NULL, 
	name VARCHAR(100) NOT NULL, 
	created_at VARCHAR(40) NOT NULL, 
	PRIMARY KEY (tenant_id), 
	UNIQUE (name)
);
INSERT INTO tenants VALUES(1,'acme','2026-01-01T00:00:00.000+00:00');
CREATE TABLE records (
	upload_no INTEGER NOT NULL, 
	seq INTEGER NOT NULL, 
	row_index INTEGER NOT NULL, 
	payload TEXT NOT NULL, 
	PRIMARY KEY (upload_no, seq, row_index)
)
 WITHOUT ROWID

;
INSERT INTO records VALUES(1,0,0,'{"n": 1}');
INSERT INTO records VALUES(2,0,0,'{"n": 2}');
INSERT INTO records VALUES(3,0,0,'{"n": 3}');
INSERT INTO records VALUES(4,0,0,'{"n": 4}');
INSERT INTO records VALUES(6,0,0,'{"n": 6}');
CREATE TABLE health_reports (
	report_no INTEGER NOT NULL, 
	tenant_id INTEGER NOT NULL, 
	installation_id VARCHAR(200) NOT NULL, 
	received_at VARCHAR(40) NOT NULL, 
	report TEXT NOT NULL, 
	PRIMARY KEY (report_no)
);
INSERT INTO health_reports VALUES(1,1,'site-1','2026-01-01T00:00:00.000+00:00','{"status":"ok"}');
CREATE TABLE tenant_keys (
	key_id VARCHAR(16) NOT NULL, 
	tenant_id INTEGER NOT NULL, 
	digest VARCHAR(64) NOT NULL, 
	created_at VARCHAR(40) NOT NULL, 
	PRIMARY KEY (key_id), 
	FOREIGN KEY(tenant_id) REFERENCES tenants (tenant_id) ON DELETE CASCADE
);
INSERT INTO tenant_keys VALUES('fb08a56cbdbf',1,'44e6cc0e9648807586f4ef8094a489c1c056df3bca5c9b64682cda5f92077fe9','2026-01-01T00:00:00.000+00:00');
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
	epoch BIGINT DEFAULT 0 NOT NULL, 
	epoch_at VARCHAR(40), 
	epoch_nonces TEXT DEFAULT '[]' NOT NULL, 
	PRIMARY KEY (tenant_id, installation_id), 
	FOREIGN KEY(tenant_id) REFERENCES tenants (tenant_id) ON DELETE CASCADE
)
 WITHOUT ROWID

;
INSERT INTO installations VALUES(1,'site-1','2026-01-01T00:00:00.000+00:00','2026-01-01T00:00:00.000+00:00','2026-01-01T00:00:00.000+00:00','skylark','','','null','null','2026-01-01T00:00:00.000+00:00','2026-01-01T00:00:00.000+00:00','{"status":"ok"}',5,'2026-01-01T00:00:00.000+00:00','["n1"]');
CREATE TABLE sources (
	source_id INTEGER NOT NULL, 
	tenant_id INTEGER NOT NULL, 
	installation_id VARCHAR(200) NOT NULL, 
	source_key TEXT NOT NULL, 
	key_digest VARCHAR(64) NOT NULL, 
	highest_seq BIGINT DEFAULT 0 NOT NULL, 
	watermark TEXT DEFAULT 'null' NOT NULL, 
	full_seq BIGINT DEFAULT 0 NOT NULL, 
	mode VARCHAR(8), 
	watermark_of TEXT DEFAULT '' NOT NULL, 
	PRIMARY KEY (source_id), 
	UNIQUE (tenant_id, installation_id, key_digest), 
	FOREIGN KEY(tenant_id) REFERENCES tenants (tenant_id) ON DELETE CASCADE
);
INSERT INTO sources VALUES(1,1,'site-1','files','3d7db37d08f9140fd09f12b9621cd0954b6d56a9d2f357fb2c7f5d62636d2fd1',20,'null',0,'replace','');
INSERT INTO sources VALUES(2,1,'site-1','orders','1c168adb00d208e42f93314529f1fa9c0427eb63233ceda95a5db52b7012a719',30,'[5,30]',0,'append','');
INSERT INTO sources VALUES(3,1,'site-1','emptied','662cb04bf94ef6438ba22aeb98ac88da2beca346c9721a78e0d783d5b7debe43',31,'null',0,'replace','');
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
INSERT INTO uploads VALUES(1,1,'u1','complete',0,'2026-01-01T00:00:00.000+00:00','2026-01-01T00:00:00.000+00:00','16c5c2ba6ea34c83b891902068a9db6e',NULL,0,0,1,'k-u1','1e77cdb4d2ea6adb667c4d5f466f55b050aef6b319b4828310258b2285a3c1d2',10,'replace',1,1,'site-1','flights','2013.csv','{"site":1}','skylark','1.0');
INSERT INTO uploads VALUES(2,1,'u2','complete',1,'2026-01-01T00:00:00.000+00:00','2026-01-01T00:00:00.000+00:00','2e9c9cb6d60d42fbb47942da26faeda9',NULL,0,0,1,'k-u2','d5af3232f8d7dc561a247531ef59fe52c1d243e2e869191f181d66bfe907023b',20,'replace',1,1,'site-1','flights','2013.csv','{"site":1}','skylark','1.0');
INSERT INTO uploads VALUES(3,1,'u3','superseded',0,'2026-01-01T00:00:00.000+00:00','2026-01-01T00:00:00.000+00:00',NULL,NULL,0,0,1,'k-u3','b21844f49520ff7e792309cfca2a70b62e157e65f98dcb85c3c60445d79de854',15,'replace',1,1,'site-1','flights','2013.csv','{"site":1}','skylark','1.0');
INSERT INTO uploads VALUES(4,1,'u4','complete',1,'2026-01-01T00:00:00.000+00:00','2026-01-01T00:00:00.000+00:00','589169897fb846b285f277cbc5aea2b2',NULL,0,0,2,'k-u4','d9458ff2d5ec59f06bb7d7261ba58eb2041dc6dd0756301f45a71ca5fee530ad',30,'append',1,1,'site-1','flights','sql:orders','{"site":1}','skylark','1.0');
INSERT INTO uploads VALUES(5,1,'u5','complete',1,'2026-01-01T00:00:00.000+00:00','2026-01-01T00:00:00.000+00:00','71a217cb81ab4a17a61cf29ebdefcb6d',NULL,0,0,3,'k-u5','491781fa0086021a2aa13dd1e7ec7f34b9c5858a31811457f7105dae3c805629',31,'replace',0,0,'site-1','flights','2013.csv','{"site":1}','skylark','1.0');
INSERT INTO uploads VALUES(6,1,'u6','open',0,'2026-01-01T00:00:00.000+00:00',NULL,NULL,NULL,0,0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL);
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
INSERT INTO chunks VALUES(1,0,'e5d5f7c1d225fd6b13623ebb1b5b9d075c705659f81868b1e37005a0923b0346',1,'2026-01-01T00:00:00.000+00:00');
INSERT INTO chunks VALUES(2,0,'fcb7ecf22a686fde527cafa2dd308d1c321ff6d1baddedf24668afbba85a7d64',1,'2026-01-01T00:00:00.000+00:00');
INSERT INTO chunks VALUES(3,0,'389d42d9a5766a33e43c9a95fe1e7555f2896ab790b0ec7e2c9dd552b9d4a44a',1,'2026-01-01T00:00:00.000+00:00');
INSERT INTO chunks VALUES(4,0,'1e63f1e0517921ef775ba2563a04e00613bfa1a40333523a87480cbf126994e2',1,'2026-01-01T00:00:00.000+00:00');
INSERT INTO chunks VALUES(6,0,'1b697982570fac683f5e92b35b18bfd8839e953f3e1a4693a96ac565e44be9b0',1,'2026-01-01T00:00:00.000+00:00');
CREATE INDEX health_by_time ON health_reports (received_at);
CREATE INDEX uploads_of_source ON uploads (source_id, visible, key_digest);
CREATE INDEX uploads_by_hook ON uploads (hook_due_at);
CREATE INDEX uploads_by_state ON uploads (state, visible, rows_gone);
CREATE INDEX chunks_by_time ON chunks (stored_at);
CREATE VIEW visible_records AS
SELECT t.name AS tenant, u.installation_id, u.stream, u.source, u.params, u.upload_id,
       u.source_seq, r.seq, r.row_index, r.payload
FROM uploads u
JOIN tenants t ON t.tenant_id = u.tenant_id
JOIN records r ON r.upload_no = u.upload_no
WHERE u.visible;
COMMIT;
