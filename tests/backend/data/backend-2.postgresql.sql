CREATE TABLE backend_generation (
    generation character varying(32) NOT NULL
);

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
    health_report text,
    epoch bigint DEFAULT 0 NOT NULL,
    epoch_at character varying(40),
    epoch_nonces text DEFAULT '[]'::text NOT NULL
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
    watermark text DEFAULT 'null'::text NOT NULL,
    full_seq bigint DEFAULT 0 NOT NULL,
    mode character varying(8),
    watermark_of text DEFAULT ''::text NOT NULL
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
    u.params,
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

INSERT INTO backend_generation VALUES ('58df60935ff648a08cd204cc8a518b48');

INSERT INTO backend_schema VALUES (2);

INSERT INTO chunks VALUES (1, 0, 'e5d5f7c1d225fd6b13623ebb1b5b9d075c705659f81868b1e37005a0923b0346', 1, '2026-01-01T00:00:00.000+00:00');
INSERT INTO chunks VALUES (3, 0, 'fcb7ecf22a686fde527cafa2dd308d1c321ff6d1baddedf24668afbba85a7d64', 1, '2026-01-01T00:00:00.000+00:00');
INSERT INTO chunks VALUES (5, 0, '389d42d9a5766a33e43c9a95fe1e7555f2896ab790b0ec7e2c9dd552b9d4a44a', 1, '2026-01-01T00:00:00.000+00:00');
INSERT INTO chunks VALUES (7, 0, '1e63f1e0517921ef775ba2563a04e00613bfa1a40333523a87480cbf126994e2', 1, '2026-01-01T00:00:00.000+00:00');
INSERT INTO chunks VALUES (10, 0, '1b697982570fac683f5e92b35b18bfd8839e953f3e1a4693a96ac565e44be9b0', 1, '2026-01-01T00:00:00.000+00:00');

INSERT INTO health_reports VALUES (1, 1, 'site-1', '2026-01-01T00:00:00.000+00:00', '{"status":"ok"}');

INSERT INTO installations VALUES (1, 'site-1', '2026-01-01T00:00:00.000+00:00', '2026-01-01T00:00:00.000+00:00', '2026-01-01T00:00:00.000+00:00', 'skylark', '', '', 'null', 'null', '2026-01-01T00:00:00.000+00:00', '2026-01-01T00:00:00.000+00:00', '{"status":"ok"}', 5, '2026-01-01T00:00:00.000+00:00', '["n1"]');

INSERT INTO records VALUES (1, 0, 0, '{"n": 1}');
INSERT INTO records VALUES (3, 0, 0, '{"n": 2}');
INSERT INTO records VALUES (5, 0, 0, '{"n": 3}');
INSERT INTO records VALUES (7, 0, 0, '{"n": 4}');
INSERT INTO records VALUES (10, 0, 0, '{"n": 6}');

INSERT INTO sources VALUES (1, 1, 'site-1', 'files', '3d7db37d08f9140fd09f12b9621cd0954b6d56a9d2f357fb2c7f5d62636d2fd1', 20, 'null', 0, 'replace', '');
INSERT INTO sources VALUES (4, 1, 'site-1', 'orders', '1c168adb00d208e42f93314529f1fa9c0427eb63233ceda95a5db52b7012a719', 30, '[5,30]', 0, 'append', '');
INSERT INTO sources VALUES (5, 1, 'site-1', 'emptied', '662cb04bf94ef6438ba22aeb98ac88da2beca346c9721a78e0d783d5b7debe43', 31, 'null', 0, 'replace', '');

INSERT INTO tenant_keys VALUES ('20e63183c5b4', 1, 'ab4d1708c803538d313a68ce14166998ac11f054c186adfbe6d660684dbdde46', '2026-01-01T00:00:00.000+00:00');

INSERT INTO tenants VALUES (1, 'acme', '2026-01-01T00:00:00.000+00:00');

INSERT INTO uploads VALUES (1, 1, 'u1', 'complete', false, '2026-01-01T00:00:00.000+00:00', '2026-01-01T00:00:00.000+00:00', '978fbc0b3fb142169ffb9d344bc4316c', NULL, 0, false, 1, 'k-u1', '1e77cdb4d2ea6adb667c4d5f466f55b050aef6b319b4828310258b2285a3c1d2', 10, 'replace', 1, 1, 'site-1', 'flights', '2013.csv', '{"site":1}', 'skylark', '1.0');
INSERT INTO uploads VALUES (3, 1, 'u2', 'complete', true, '2026-01-01T00:00:00.000+00:00', '2026-01-01T00:00:00.000+00:00', '34ace7d9b98c453e8b3b20d1f7552322', NULL, 0, false, 1, 'k-u2', 'd5af3232f8d7dc561a247531ef59fe52c1d243e2e869191f181d66bfe907023b', 20, 'replace', 1, 1, 'site-1', 'flights', '2013.csv', '{"site":1}', 'skylark', '1.0');
INSERT INTO uploads VALUES (5, 1, 'u3', 'superseded', false, '2026-01-01T00:00:00.000+00:00', '2026-01-01T00:00:00.000+00:00', NULL, NULL, 0, false, 1, 'k-u3', 'b21844f49520ff7e792309cfca2a70b62e157e65f98dcb85c3c60445d79de854', 15, 'replace', 1, 1, 'site-1', 'flights', '2013.csv', '{"site":1}', 'skylark', '1.0');
INSERT INTO uploads VALUES (7, 1, 'u4', 'complete', true, '2026-01-01T00:00:00.000+00:00', '2026-01-01T00:00:00.000+00:00', '2e8fdfc6d71a4bc4bf8a05cbc43be342', NULL, 0, false, 4, 'k-u4', 'd9458ff2d5ec59f06bb7d7261ba58eb2041dc6dd0756301f45a71ca5fee530ad', 30, 'append', 1, 1, 'site-1', 'flights', 'sql:orders', '{"site":1}', 'skylark', '1.0');
INSERT INTO uploads VALUES (9, 1, 'u5', 'complete', true, '2026-01-01T00:00:00.000+00:00', '2026-01-01T00:00:00.000+00:00', '8cfc14506d014fc9b5daf889b9d9ab3b', NULL, 0, false, 5, 'k-u5', '491781fa0086021a2aa13dd1e7ec7f34b9c5858a31811457f7105dae3c805629', 31, 'replace', 0, 0, 'site-1', 'flights', '2013.csv', '{"site":1}', 'skylark', '1.0');
INSERT INTO uploads VALUES (10, 1, 'u6', 'open', false, '2026-01-01T00:00:00.000+00:00', NULL, NULL, NULL, 0, false, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);

SELECT pg_catalog.setval('health_reports_report_no_seq', 1, true);

SELECT pg_catalog.setval('sources_source_id_seq', 5, true);

SELECT pg_catalog.setval('tenants_tenant_id_seq', 1, true);

SELECT pg_catalog.setval('uploads_upload_no_seq', 10, true);

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

