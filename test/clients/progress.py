"""Draws the progress of a task until it ends, on psycopg: python3 progress.py TASK
LISTEN needs a session of its own: no pooler that shares sessions out by the transaction."""
import select, sys
import psycopg2

task = int(sys.argv[1])
connection = psycopg2.connect('')
connection.autocommit = True
cursor = connection.cursor()

def draw():   # events carry numbers and states; what a person is told is read
    cursor.execute("""SELECT state, CASE state WHEN 'completed' THEN 1 ELSE coalesce(progress, 0) END, coalesce(message, '')
        FROM orchestrator.task_status WHERE task_id = %s""", [task])
    for state, progress, message in cursor:
        filled = round(progress * 20)
        print(f"{'█' * filled}{'░' * (20 - filled)} {round(progress * 100):3} %  {state} {message}".rstrip(), flush=True)
        return state not in ('completed', 'failed', 'cancelled', 'skipped')

cursor.execute(f'LISTEN orchestrator_task_{task}')
while draw():   # it may have ended before
    while not connection.notifies:
        select.select([connection], [], [])
        connection.poll()
    connection.notifies.clear()
