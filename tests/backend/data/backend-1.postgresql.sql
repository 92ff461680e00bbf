
CREATE TABLE backend_schema (
    version integer NOT NULL
);

CREATE TABLE chunks (
    upload_no bigint NOT NULL,
    seq bigint NOT NULL,
    digest character varying(64) NOT NULL,
    records bigint NOT NULL,
    stored_at character varying(40) NOT NULL
);

CREATE TABLE health_reports (
    report_no bigint NOT NULL,
    tenant_id bigint NOT NULL,
    installation_id character varying(200) NOT NULL,
    received_at character varying(40) NOT NULL,
    report text NOT NULL
);

CREATE SEQUENCE health_reports_report_no_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE health_reports_report_no_seq OWNED BY health_reports.report_no;

CREATE TABLE installations (
    tenant_id bigint NOT NULL,
    installation_id character varying(200) NOT NULL,
    first_seen_at character varying(40) NOT NULL,
    last_seen_at character varying(40) NOT NULL,
    registered_at character varying(40),
    entry text,
    version text,
    handler text,
    host text,
    methods text,
    last_upload_at character varying(40),
    health_at character varying(40),
    health_report text
);

CREATE TABLE records (
    upload_no bigint NOT NULL,
    seq bigint NOT NULL,
    row_index integer NOT NULL,
    payload text NOT NULL
);

CREATE TABLE sources (
    source_id bigint NOT NULL,
    tenant_id bigint NOT NULL,
    installation_id character varying(200) NOT NULL,
    source_key text NOT NULL,
    key_digest character varying(64) NOT NULL,
    highest_seq bigint DEFAULT 0 NOT NULL,
    watermark text DEFAULT 'null'::text NOT NULL
);

CREATE SEQUENCE sources_source_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE sources_source_id_seq OWNED BY sources.source_id;

CREATE TABLE tenant_keys (
    key_id character varying(16) NOT NULL,
    tenant_id bigint NOT NULL,
    digest character varying(64) NOT NULL,
    created_at character varying(40) NOT NULL
);

CREATE TABLE tenants (
    tenant_id bigint NOT NULL,
    name character varying(100) NOT NULL,
    created_at character varying(40) NOT NULL
);

CREATE SEQUENCE tenants_tenant_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE tenants_tenant_id_seq OWNED BY tenants.tenant_id;

CREATE TABLE uploads (
    upload_no bigint NOT NULL,
    tenant_id bigint NOT NULL,
    upload_id character varying(200) NOT NULL,
    state character varying(12) NOT NULL,
    visible boolean DEFAULT false NOT NULL,
    opened_at character varying(40) NOT NULL,
    ended_at character varying(40),
    job_id character varying(40),
    hook_due_at character varying(40),
    hook_attempts integer DEFAULT 0 NOT NULL,
    rows_gone boolean DEFAULT false NOT NULL,
    source_id bigint,
    upload_key text,
    key_digest character varying(64),
    source_seq bigint,
    mode character varying(8),
    chunks bigint,
    records bigint,
    installation_id character varying(200),
    stream text,
    source text,
    params text,
    entry text,
    version text
);

CREATE SEQUENCE uploads_upload_no_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE uploads_upload_no_seq OWNED BY uploads.upload_no;

CREATE VIEW visible_records AS
 SELECT t.name AS tenant,
    u.installation_id,
    u.stream,
    u.source,
    u.upload_id,
    u.source_seq,
    r.seq,
    r.row_index,
    r.payload
   FROM ((uploads u
     JOIN tenants t ON ((t.tenant_id = u.tenant_id)))
     JOIN records r ON ((r.upload_no = u.upload_no)))
  WHERE u.visible;

ALTER TABLE ONLY health_reports ALTER COLUMN report_no SET DEFAULT nextval('health_reports_report_no_seq'::regclass);

ALTER TABLE ONLY sources ALTER COLUMN source_id SET DEFAULT nextval('sources_source_id_seq'::regclass);

ALTER TABLE ONLY tenants ALTER COLUMN tenant_id SET DEFAULT nextval('tenants_tenant_id_seq'::regclass);

ALTER TABLE ONLY uploads ALTER COLUMN upload_no SET DEFAULT nextval('uploads_upload_no_seq'::regclass);

INSERT INTO backend_schema VALUES (1);

INSERT INTO chunks VALUES (1, 0, '3a7596abc0fb02ee1c4e406fd2004f507eac5f2dcfe27ea91d649e5a097d7541', 1, '2026-01-01T00:00:00.000+00:00');
INSERT INTO chunks VALUES (3, 0, 'e5d5f7c1d225fd6b13623ebb1b5b9d075c705659f81868b1e37005a0923b0346', 1, '2026-01-01T00:00:00.000+00:00');
INSERT INTO chunks VALUES (5, 0, 'fcb7ecf22a686fde527cafa2dd308d1c321ff6d1baddedf24668afbba85a7d64', 1, '2026-01-01T00:00:00.000+00:00');
INSERT INTO chunks VALUES (7, 0, '389d42d9a5766a33e43c9a95fe1e7555f2896ab790b0ec7e2c9dd552b9d4a44a', 1, '2026-01-01T00:00:00.000+00:00');

INSERT INTO installations VALUES (1, 'site-1', '2026-01-01T00:00:00.000+00:00', '2026-01-01T00:00:00.000+00:00', '2026-01-01T00:00:00.000+00:00', 'e', '', '', 'null', 'null', '2026-01-01T00:00:00.000+00:00', NULL, NULL);

INSERT INTO records VALUES (1, 0, 0, '{"n": 0}');
INSERT INTO records VALUES (3, 0, 0, '{"n": 1}');
INSERT INTO records VALUES (5, 0, 0, '{"n": 2}');
INSERT INTO records VALUES (7, 0, 0, '{"n": 3}');

INSERT INTO sources VALUES (1, 1, 'site-1', 'files', '3d7db37d08f9140fd09f12b9621cd0954b6d56a9d2f357fb2c7f5d62636d2fd1', 20, 'null');
INSERT INTO sources VALUES (3, 1, 'site-1', 'orders', '1c168adb00d208e42f93314529f1fa9c0427eb63233ceda95a5db52b7012a719', 30, '5');

INSERT INTO tenant_keys VALUES ('b806e8d0b21e', 1, '398337c62e19e449e23111bb0b607619d02051173357c40d8c9ca74c2669c297', '2026-01-01T00:00:00.000+00:00');

INSERT INTO tenants VALUES (1, 'skylark', '2026-01-01T00:00:00.000+00:00');

INSERT INTO uploads VALUES (1, 1, 'u0', 'complete', false, '2026-01-01T00:00:00.000+00:00', '2026-01-01T00:00:00.000+00:00', '37a851a441224ff4b54d735199f74a0a', NULL, 0, false, 1, 'u0', '9dc02223da426384268a0b489b28b008464099491967f6f0597853e939953ea0', 10, 'replace', 1, 1, 'site-1', 'flights', '2013.csv', '{"site":1}', 'e', '1');
INSERT INTO uploads VALUES (3, 1, 'u1', 'complete', true, '2026-01-01T00:00:00.000+00:00', '2026-01-01T00:00:00.000+00:00', 'ed10231f43e44424aa916974c4517e26', NULL, 0, false, 1, 'u1', 'bb82030dbc2bcaba32a90bf2e207a84a856fc5f033b77c480836ab6f77f40f19', 20, 'replace', 1, 1, 'site-1', 'flights', '2013.csv', '{"site":1}', 'e', '1');
INSERT INTO uploads VALUES (5, 1, 'u2', 'complete', true, '2026-01-01T00:00:00.000+00:00', '2026-01-01T00:00:00.000+00:00', '9aeceff360b24172a6416db73e6dff17', NULL, 0, false, 3, 'u2', '6ca202c88e549dff68c09bfafbfc60b2fac074debc1e6777e9ba4b6c703ed114', 30, 'append', 1, 1, 'site-1', 'flights', 'sql:orders', '{}', 'e', '1');
INSERT INTO uploads VALUES (7, 1, 'u3', 'open', false, '2026-01-01T00:00:00.000+00:00', NULL, NULL, NULL, 0, false, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

SELECT pg_catalog.setval('health_reports_report_no_seq', 1, false);

SELECT pg_catalog.setval('sources_source_id_seq', 3, true);

SELECT pg_catalog.setval('tenants_tenant_id_seq', 1, true);

SELECT pg_catalog.setval('uploads_upload_no_seq', 7, true);

ALTER TABLE ONLY chunks
    ADD CONSTRAINT chunks_pkey PRIMARY KEY (upload_no, seq);

ALTER TABLE ONLY health_reports
    ADD CONSTRAINT health_reports_pkey PRIMARY KEY (report_no);

ALTER TABLE ONLY installations
    ADD CONSTRAINT installations_pkey PRIMARY KEY (tenant_id, installation_id);

ALTER TABLE ONLY records
    ADD CONSTRAINT records_pkey PRIMARY KEY (upload_no, seq, row_index);

ALTER TABLE ONLY sources
    ADD CONSTRAINT sources_pkey PRIMARY KEY (source_id);

ALTER TABLE ONLY sources
    ADD CONSTRAINT sources_tenant_id_installation_id_key_digest_key UNIQUE (tenant_id, installation_id, key_digest);

ALTER TABLE ONLY tenant_keys
    ADD CONSTRAINT tenant_keys_pkey PRIMARY KEY (key_id);

ALTER TABLE ONLY tenants
    ADD CONSTRAINT tenants_name_key UNIQUE (name);

ALTER TABLE ONLY tenants
    ADD CONSTRAINT tenants_pkey PRIMARY KEY (tenant_id);

ALTER TABLE ONLY uploads
    ADD CONSTRAINT uploads_pkey PRIMARY KEY (upload_no);

ALTER TABLE ONLY uploads
    ADD CONSTRAINT uploads_tenant_id_upload_id_key UNIQUE (tenant_id, upload_id);

CREATE INDEX chunks_by_time ON chunks USING btree (stored_at);

CREATE INDEX health_by_time ON health_reports USING btree (received_at);

CREATE INDEX uploads_by_hook ON uploads USING btree (hook_due_at);

CREATE INDEX uploads_by_state ON uploads USING btree (state, visible, rows_gone);

CREATE INDEX uploads_of_source ON uploads USING btree (source_id, visible, key_digest);

ALTER TABLE ONLY chunks
    ADD CONSTRAINT chunks_upload_no_fkey FOREIGN KEY (upload_no) REFERENCES uploads(upload_no) ON DELETE CASCADE;

ALTER TABLE ONLY installations
    ADD CONSTRAINT installations_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES tenants(tenant_id) ON DELETE CASCADE;

ALTER TABLE ONLY sources
    ADD CONSTRAINT sources_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES tenants(tenant_id) ON DELETE CASCADE;

ALTER TABLE ONLY tenant_keys
    ADD CONSTRAINT tenant_keys_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES tenants(tenant_id) ON DELETE CASCADE;

ALTER TABLE ONLY uploads
    ADD CONSTRAINT uploads_source_id_fkey FOREIGN KEY (source_id) REFERENCES sources(source_id);

ALTER TABLE ONLY uploads
    ADD CONSTRAINT uploads_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES tenants(tenant_id) ON DELETE CASCADE;

