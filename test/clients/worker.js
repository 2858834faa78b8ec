// A remote worker on node-postgres: node worker.js QUEUE...
// The environment says where the server is (PGHOST, ...).
const { EventEmitter, once } = require('events');
const sleep = require('timers/promises').setTimeout;
const pool = new (require('pg').Pool)({ max: 4 }); // one of its connections sleeps in await_work()
const queues = process.argv.slice(2), name = `node-postgres ${process.pid}`;
const LEASE = '10 s', HEARTBEAT = 3000, PARALLEL = 20, GRACE = 2000, PATIENCE = 1000 * (process.env.PATIENCE ?? 10);
const running = new Map(), ended = [], wake = new EventEmitter();
let stopping = false, sleeping = null;
const handlers = { // by the names that definitions give: input -> output
  double: async input => ({ double: 2 * input.n }),
  pages: async (input, stop, beat) => {
    for (let page = 1; page <= input.pages; page++) {
      await sleep(input.ms, null, { signal: stop });
      await beat(page / input.pages, `page ${page} of ${input.pages}`);
    }
    return { pages: input.pages };
  },
};

// Repeated until the server answers; what was done by a call whose answer was lost is not done twice.
async function call(sql, ...values) {
  for (let pause = 50; ; pause = Math.min(pause * 2, 5000)) {
    try { return (await pool.query(sql, values)).rows; } catch (error) {
      if (/^(?!08|57P)[0-9A-Z]{5}$/.test(error.code)) throw error;
      await sleep(pause * (0.5 + Math.random()));
    }
  }
}

async function run({ task_id: id, token, handler, input }) {
  const stop = new AbortController(), report = (verb, ...more) => call(`SELECT orchestrator.${verb}`, id, token, ...more);
  const beat = async (fraction, message) => { // cancel, lost: stop
    if ((await report('heartbeat($1, $2, NULL, $3, $4)', fraction, message))[0].heartbeat !== 'running') stop.abort();
  };
  const timer = setInterval(beat, HEARTBEAT); // and whenever a handler has progress to tell
  running.set(id, () => { stop.abort(); return report('release($1, $2)').catch(() => {}); });
  try { ended.push({ id, token, output: JSON.stringify(await handlers[handler](input, stop.signal, beat)) }); } catch (error) {
    if (!stop.signal.aborted) await report('fail($1, $2, $3, $4)', JSON.stringify(error.message), !(error instanceof TypeError)).catch(() => {});
  }
  clearInterval(timer);
  wake.emit('up', running.delete(id));
}

async function main() {
  while (!stopping || running.size + ended.length > 0) {
    const some = ended.splice(0), room = stopping ? 0 : PARALLEL - running.size;
    if (some.length > 0) await call('SELECT orchestrator.complete_many($1, $2, $3)', ...['id', 'token', 'output'].map(key => some.map(task => task[key])));
    const tasks = room > 0 ? await call('SELECT * FROM orchestrator.claim($1, $2, $3, $4)', queues, name, room, LEASE) : [];
    tasks.forEach(run);
    if (tasks.length + ended.length > 0 || stopping && (room > 0 || running.size === 0)) continue;
    const up = once(wake, 'up');
    if (room > 0) sleeping ??= call("CALL orchestrator.await_work($1, '20 s')", queues).finally(() => { sleeping = null; wake.emit('up'); });
    await up;
  }
  process.exit(0);
}
process.on('SIGTERM', () => { stopping = true; wake.emit('up'); setTimeout(() => running.forEach(release => release()), GRACE); setTimeout(() => process.exit(1), PATIENCE); });
main();
