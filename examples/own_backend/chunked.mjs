// A receiver of the chunked form in Node 20 or later, with nothing installed.
//
// usage: OWN_BACKEND_KEY="KEY [KEY…]" node chunked.mjs [PORT] [JOURNAL]
//        node chunked.mjs --rows JOURNAL      prints what is visible of the first tenant
//        node chunked.mjs --latest JOURNAL    prints the newest row of each key, in mode merge
//
// Each key is that of a tenant. Everything is kept in memory, and comes back from a journal: what
// changes something is written there, and flushed to the disk, before it is answered. One request
// is judged at a time, so that each is a transaction.

import { createHash, randomUUID, timingSafeEqual } from 'node:crypto';
import { appendFileSync, existsSync, fsyncSync, openSync, readFileSync, truncateSync } from 'node:fs';
import { createServer } from 'node:http';
import { gunzipSync } from 'node:zlib';

const printed = ['--rows', '--latest'].find((option) => option === process.argv[2]);
const [port = '8803', journal = 'own_backend.journal'] = process.argv.slice(2);
const keys = (process.env.OWN_BACKEND_KEY ?? '').split(' ').filter(Boolean);
const BODY_LIMIT = 32 << 20, LIMIT = 64 << 20, NONCES = 64, LISTED = 10_000;

class Refused extends Error {
  constructor(status, name, members = {}) {
    super(name);
    this.status = status;
    this.answer = { type: `urn:catalogzero:problem:${name}`, title: name, status, ...members };
  }
}

// JSON.parse takes every number for a double: here each becomes {"#": its text} first, so that no
// digit is lost, and 5, 5.0, "5" and true stay apart.
const TOKEN = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?/g;
const marked = (text) => text.replace(TOKEN, (m) => (m[0] === '"' ? m : `{"#":"${m}"}`));
const read = (text) => (JSON.parse(text), JSON.parse(marked(text)));
const write = (value) =>
  JSON.stringify(value, (_, v) => (typeof v === 'bigint' ? { '#': String(v) } : v))
    .replace(/\{"#":"([^"]*)"\}/g, '$1');
const sorted = (value) =>
  value && typeof value === 'object' && !Array.isArray(value)
    ? Object.fromEntries(Object.keys(value).sort().map((k) => [k, sorted(value[k])]))
    : Array.isArray(value) ? value.map(sorted) : value;
const canonical = (value) => JSON.stringify(sorted(value ?? null));

function whole(body, name, low, high = 2n ** 63n - 1n) {
  const text = body[name]?.['#'];
  const value = /^-?\d+$/.test(text ?? '') ? BigInt(text) : -1n;
  if (value < low || value > high) throw new Refused(400, 'invalid-request', { errors: [{ field: name }] });
  return value;
}

function text(body, name, low = 0, high = 2_000) {
  const value = body[name] ?? '';
  if (typeof value !== 'string' || value.length < low || value.length > high || value.includes('\0'))
    throw new Refused(400, 'invalid-request', { errors: [{ field: name }] });
  return value;
}

// What is known, by tenant. `change` is the only thing that changes it.
const tenants = new Map();
const knownOf = (number) => {
  if (!tenants.has(number))
    tenants.set(number, { uploads: new Map(), sources: new Map(), installations: new Map() });
  return tenants.get(number);
};
const entry = (map, key, fresh) => map.get(key) ?? (map.set(key, fresh()), map.get(key));
const uploadOf = (known, id) => entry(known.uploads, id, () => ({ chunks: new Map(), state: 'open' }));
const sourceOf = (known, [site, key]) => entry(known.sources, `${site}\n${key}`, () =>
  ({ site, key, highest: '0', fullSeq: '0', watermark: null, of: '', mode: null, shown: [] }));
const siteOf = (known, name) => entry(known.installations, name, () => ({ epoch: '0', nonces: [] }));
let generation = '';

const effects = {
  generation: (_, { id }) => { generation = id; },
  chunk: (known, { upload, seq, lines }) => { uploadOf(known, upload).chunks.set(seq, lines); },
  rise: (known, { source, to }) => { sourceOf(known, source).highest = to; },
  epoch: (known, { name, ...site }) => { Object.assign(siteOf(known, name), site); },
  health: () => {},
  end: (known, { upload, source, state, job, key, label, alone, now }) => {
    const home = sourceOf(known, source);
    Object.assign(uploadOf(known, upload), { state, job, key, label, source });
    if (state === 'complete') home.shown = alone ? [upload] : [...home.shown, upload];
    Object.assign(home, now);
  },
};

function change(tenant, what, about) {
  appendFileSync(file, JSON.stringify([tenant, what, about]) + '\n');
  fsyncSync(file);
  effects[what](knownOf(tenant), about);
}

function putChunk(tenant, id, seq, lines) {
  const upload = knownOf(tenant).uploads.get(id);
  if (upload && upload.state !== 'open') throw new Refused(410, 'upload-finished');
  const stored = upload?.chunks.get(seq);
  if (!stored) {
    change(tenant, 'chunk', { upload: id, seq, lines });
    return [201, {}];
  }
  if (stored.length !== lines.length || stored.some((line, n) => line !== lines[n]))
    throw new Refused(409, 'chunk-differs');
  return [200, {}];
}

function complete(tenant, id, body) {
  const known = knownOf(tenant);
  const number = whole(body, 'source_seq', 1n);
  const chunks = Number(whole(body, 'chunks', 0n, 1_000_000n)), records = whole(body, 'records', 0n);
  const key = text(body, 'upload_key', 1), own = [text(body, 'installation_id', 1, 200), text(body, 'source_key', 1)];
  const full = body.full ?? false, mode = body.mode ?? 'replace', of = text(body, 'watermark_of');
  if (!['append', 'merge', 'replace'].includes(mode)) throw new Refused(400, 'invalid-request', { errors: [{ field: 'mode' }] });
  const columns = body.key ?? [], tombstone = body.tombstone ?? null;
  if (columns.length > 0 !== (mode === 'merge')) throw new Refused(400, 'invalid-request', { errors: [{ field: 'key' }] });
  admit(tenant, own[0], body);
  const upload = known.uploads.get(id) ?? { chunks: new Map(), state: 'open' };
  const source = sourceOf(known, upload.source ?? own), highest = BigInt(source.highest);
  const superseded = { superseded: true, source_seq: highest, watermark: source.watermark };
  if (upload.state === 'complete')
    return [200, { job_id: upload.job, duplicate: true, by: 'upload_id', source_seq: highest }];
  if (upload.state === 'superseded') return [200, superseded];
  const twin = source.shown.map((shown) => known.uploads.get(shown)).find((shown) => shown.key === key);
  if (twin && !full) {
    const higher = number > highest ? number : highest;
    change(tenant, 'rise', { source: own, to: String(higher) });
    return [200, { job_id: twin.job, duplicate: true, by: 'upload_key', source_seq: higher }];
  }
  const chained = mode !== 'replace' && !full;
  if (chained ? canonical(body.after) !== canonical(source.watermark) : number <= highest) {
    change(tenant, 'end', { upload: id, source: own, state: 'superseded', now: {} });
    return [200, superseded];
  }
  const merged = canonical([columns, tombstone]);
  if (!full && source.mode && (source.mode !== mode || (source.merged ?? merged) !== merged || (of && source.of && of !== source.of)))
    throw new Refused(409, 'mode-changed');
  const missing = Array.from({ length: chunks }, (_, seq) => seq).filter((seq) => !upload.chunks.has(seq));
  if (missing.length) throw new Refused(409, 'chunks-missing', { missing: missing.slice(0, LISTED) });
  const stored = [...upload.chunks.values()].reduce((sum, lines) => sum + lines.length, 0);
  if (upload.chunks.size !== chunks || BigInt(stored) !== records) throw new Refused(422, 'totals-differ');
  const job = randomUUID(), until = mode === 'replace' ? null : body.until ?? null;
  for (const line of columns.length ? [...upload.chunks.values()].flat() : []) keyOf(line, columns);
  const now = { mode, of, merged, watermark: until, highest: String(number > highest ? number : highest) };
  if (full) now.fullSeq = String(number);
  const label = text(body, 'source');
  change(tenant, 'end', { upload: id, source: own, state: 'complete', job, key, label, alone: !chained, now });
  return [201, { job_id: job }];
}

// The canonical text of a record's key; numbers are compared as they are written.
function keyOf(line, columns) {
  const record = read(line), values = columns.map((column) => record[column] ?? null);
  if (values.includes(null)) throw new Refused(422, 'refused-records');
  return canonical(values);
}

// The newest line of each key: a row takes the place of the one before, a tombstone leaves nothing.
function latestOf({ shown, merged }, uploads) {
  const [columns, tombstone] = JSON.parse(merged), rows = new Map();
  for (const { chunks } of shown.map((id) => uploads.get(id)))
    for (const line of [...chunks].sort(([a], [b]) => a - b).flatMap(([, lines]) => lines)) {
      const key = keyOf(line, columns), mark = read(line)[tombstone] ?? false;
      rows.delete(key);
      if (['false', '"false"', '0', '"0"'].includes(write(mark))) rows.set(key, line);
    }
  return [...rows.values()];
}

function admit(tenant, name, body) {
  const { epoch, since } = knownOf(tenant).installations.get(name) ?? { epoch: '0' };
  const given = body.installation_epoch == null ? 0n : whole(body, 'installation_epoch', 0n, 2n ** 62n);
  if (given < BigInt(epoch)) throw new Refused(409, 'installation-moved', { since });
  if (given > BigInt(epoch)) change(tenant, 'epoch', { name, epoch: String(given), since: new Date().toISOString() });
}

function start(tenant, name, body) {
  const known = knownOf(tenant), isNew = !known.installations.has(name);
  const { epoch, since, nonces } = known.installations.get(name) ?? { epoch: '0', nonces: [] };
  const own = [...known.sources.values()].filter((s) => s.site === name && s.highest !== '0');
  const sources = Object.fromEntries(own.map((s) => [s.key, BigInt(s.highest)]));
  if (body.epoch == null) {
    change(tenant, 'epoch', { name });
    return [isNew ? 201 : 200, { sources }];
  }
  const given = whole(body, 'epoch', 0n, 2n ** 62n), nonce = text(body, 'nonce');
  if (![undefined, null, generation].includes(body.generation))
    throw new Refused(409, 'generation-changed', { generation });
  const isKnown = nonces[0] && [nonce, text(body, 'last_nonce')].includes(nonces[0]);
  const isOld = (nonce && nonces.includes(nonce)) || (given > 0n && given < BigInt(epoch));
  if (isOld && !isKnown) throw new Refused(409, 'installation-moved', { since });
  const next = [BigInt(epoch) + 1n, given + 1n, BigInt(Date.now())].reduce((a, b) => (a > b ? a : b));
  const at = new Date().toISOString();
  change(tenant, 'epoch', { name, epoch: String(next), since: at, nonces: [nonce, ...nonces].slice(0, NONCES) });
  const states = Object.fromEntries(own.map((s) => [s.key, {
    source_seq: BigInt(s.highest), watermark: s.watermark, full_seq: BigInt(s.fullSeq), mode: s.mode }]));
  return [isNew ? 201 : 200, { generation, epoch: next, states, sources }];
}

function show(tenant, id) {
  const upload = knownOf(tenant).uploads.get(id);
  if (!upload) throw new Refused(404, 'not-found');
  return [200, { chunks: [...upload.chunks.keys()].sort((a, b) => a - b), state: upload.state, job_id: upload.job }];
}

function report(tenant, body) {
  text(body, 'client_id', 1, 200);
  change(tenant, 'health', body);
  return [200, { server_time: new Date().toISOString() }];
}

function linesOf(body, coding, type) {
  if (!['', 'identity', 'gzip'].includes(coding) || type !== 'application/x-ndjson')
    throw new Refused(415, 'unsupported-media-type');
  let plain = body;
  try {
    if (coding === 'gzip') plain = gunzipSync(body, { maxOutputLength: LIMIT });
  } catch (error) {
    if (error.code === 'ERR_BUFFER_TOO_LARGE') throw new Refused(413, 'too-large');
    throw new Refused(400, 'undecodable-body');
  }
  const lines = new TextDecoder('utf-8', { fatal: true }).decode(plain).split('\n').filter((line) => line.trim());
  for (const line of lines) {
    const record = JSON.parse(line);
    if (record === null || typeof record !== 'object' || Array.isArray(record)) throw new SyntaxError();
  }
  return lines.map((line) => line.trim());
}

function tenantOf(shown = '') {
  const digest = (value) => createHash('sha256').update(value).digest();
  const found = keys.findIndex((key) => timingSafeEqual(digest(`Bearer ${key}`), digest(shown)));
  if (found < 0) throw new Refused(401, 'unauthorized');
  return found;
}

function act(tenant, method, path, headers, body) {
  const [, base, what, id, more, seq] = path.map(decodeURIComponent);
  const route = `${method} ${base}/${what}/${more ?? ''}/${path.length}`;
  if (what === 'uploads' && !/^[A-Za-z0-9._~-]{1,128}$/.test(id)) throw new Refused(400, 'invalid-request');
  const digest = /sha-256=:(.*?):/.exec(headers['content-digest'] ?? '');
  if (digest && digest[1] !== createHash('sha256').update(body).digest('base64'))
    throw new Refused(400, 'digest-mismatch');
  const json = () => {
    const value = read(body.toString());
    if (value === null || typeof value !== 'object' || Array.isArray(value)) throw new SyntaxError();
    return value;
  };
  switch (route) {
    case 'PUT v1/uploads/chunks/6': {
      if (!/^\d{1,6}$/.test(seq)) throw new Refused(400, 'invalid-request');
      const type = (headers['content-type'] ?? '').split(';')[0].trim();
      return putChunk(tenant, id, Number(seq), linesOf(body, headers['content-encoding'] ?? '', type));
    }
    case 'POST v1/uploads/complete/5': return complete(tenant, id, json());
    case 'GET v1/uploads//4': return show(tenant, id);
    case 'PUT v1/installations//4': return start(tenant, id, json());
    case 'POST v1/health//3': return report(tenant, json());
  }
  throw new Refused(404, 'not-found');
}

async function receive(request, response) {
  let status, answer;
  try {
    const tenant = tenantOf(request.headers.authorization), parts = [];
    let size = 0;
    for await (const part of request) {
      size += part.length;
      if (size > BODY_LIMIT) throw new Refused(413, 'too-large');
      parts.push(part);
    }
    const path = request.url.split('?')[0].split('/');
    [status, answer] = act(tenant, request.method, path, request.headers, Buffer.concat(parts));
  } catch (error) {
    if (error.code === 'ECONNRESET') return; // the connection broke: there is nobody to answer
    const isTheirs = [SyntaxError, TypeError, RangeError, URIError].some((kind) => error instanceof kind);
    if (!(error instanceof Refused) && !isTheirs) console.error(error);
    const refused = error instanceof Refused ? error : new Refused(isTheirs ? 400 : 500, isTheirs ? 'invalid-request' : 'internal');
    ({ status, answer } = refused);
  }
  const type = status < 400 ? 'application/json' : 'application/problem+json';
  response.writeHead(status, { 'Content-Type': type, 'Catalogzero-Generation': generation });
  response.end(write(answer));
}

const written = existsSync(journal) ? readFileSync(journal, 'utf8') : '';
const entries = written.slice(0, written.lastIndexOf('\n') + 1); // a kill may have cut the last one
for (const line of entries.split('\n').filter(Boolean)) {
  const [tenant, what, about] = JSON.parse(line);
  effects[what](knownOf(tenant), about);
}
if (!printed && entries.length < written.length) truncateSync(journal, Buffer.byteLength(entries));
const file = printed ? -1 : openSync(journal, 'a');
if (printed) {
  const { sources, uploads } = knownOf(0);
  for (const source of printed === '--latest' ? sources.values() : [])
    if (source.mode === 'merge')
      for (const record of latestOf(source, uploads))
        console.log(JSON.stringify({ source: uploads.get(source.shown[0]).label, record }));
  for (const { shown } of printed === '--rows' ? sources.values() : [])
    for (const { chunks, label } of shown.map((id) => uploads.get(id)))
      for (const record of [...chunks.values()].flat())
        console.log(JSON.stringify({ source: label, record }));
} else {
  if (!generation) change(0, 'generation', { id: randomUUID() });
  const server = createServer((request, response) => void receive(request, response));
  server.listen(Number(port), '127.0.0.1', () =>
    console.log(`http://127.0.0.1:${server.address().port}/v1`));
}
