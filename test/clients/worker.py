"""A remote worker on psycopg: python3 worker.py QUEUE... (PGHOST and the like say where)"""
import json, os, random, signal, sys, threading, time
import psycopg2

QUEUES, NAME, LEASE, HEARTBEAT, BATCH, PATIENCE = sys.argv[1:], f'psycopg {os.getpid()}', '10 s', 3, 20, float(os.environ.get('PATIENCE', 10))
local, stopping = threading.local(), threading.Event()
running = {}                   # task -> token; what is taken out of it is no longer ours

def call(sql, *values):
    """Repeated until the server answers; what was done by a call whose answer was lost is not done twice."""
    for attempt in range(10**9):
        try:
            if not hasattr(local, 'connection'):   # one for each thread
                local.connection = psycopg2.connect('')
                local.connection.autocommit = True
            with local.connection.cursor() as cursor:
                cursor.execute(sql, values)
                return cursor.fetchall()
        except (psycopg2.OperationalError, psycopg2.InterfaceError):
            local.__dict__.clear()
            if stopping.is_set() and 0.05 * 2**attempt > PATIENCE: raise   # there is no server to tell
            time.sleep(0.05 * 2**min(attempt, 7) * random.uniform(0.5, 1.5))

def pages(beat, pages, ms):
    for page in range(1, pages + 1):
        time.sleep(ms / 1000)
        beat(page / pages, f'page {page} of {pages}')
    return {'pages': pages}
handlers = {'double': lambda beat, n: {'double': 2 * n}, 'pages': pages}   # by the names that definitions give

def beat(task, fraction, message):
    if call('SELECT orchestrator.heartbeat(%s, %s, NULL, %s, %s)', task, running[task], fraction, message)[0][0] != 'running':
        del running[task]      # cancel, lost: the next beat ends the handler

def keep():                    # the whole batch, also what waits behind a long one
    while not time.sleep(HEARTBEAT):
        held = dict(running)
        for task, state in call('SELECT * FROM orchestrator.heartbeat_many(%s::bigint[], %s::text[])', list(held), list(held.values())):
            if state != 'running': running.pop(task, None)

def work(task, token, handler, data):
    if task not in running: return
    try: return task, token, json.dumps(handlers[handler](lambda *progress: beat(task, *progress), **data))
    except Exception as error:
        if running.pop(task, None): settle('fail(%s, %s, %s, %s)', task, token, json.dumps(str(error)), not isinstance(error, (KeyError, TypeError)))

def settle(report, *values):
    try: call(f'SELECT orchestrator.{report}', *values)
    except psycopg2.Error: pass   # no longer ours
signal.signal(signal.SIGTERM, lambda *_: stopping.set())
threading.Thread(target=keep, daemon=True).start()
while not stopping.is_set():
    tasks = call('SELECT task_id, token, handler, input FROM orchestrator.claim(%s, %s, %s, %s)', QUEUES, NAME, BATCH, LEASE)
    running.update({task: token for task, token, *_ in tasks})
    ended = [work(*task) for task in tasks if not stopping.is_set()]
    if any(ended): call('SELECT orchestrator.complete_many(%s::bigint[], %s::text[], %s::jsonb[])', *map(list, zip(*filter(None, ended))))
    for task in tasks[len(ended):]: settle('release(%s, %s)', *task[:2])
    running.clear()
    if not tasks: call("CALL orchestrator.await_work(%s, '1 s')", QUEUES)
