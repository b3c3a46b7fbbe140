-- The roles of a fleet's PostgreSQL database, with no more rights than each needs:
--   autotune_reader  pulls records, lists jobs and devices;
--   autotune_worker  also claims jobs and stores what was measured, as sweeps, rechecks and daemons do, and
--                    queues what hosts missed;
--   autotune_publisher  has channels name bundles, forward and back; no worker can.
-- None can change the schema: its owner runs `autotune db upgrade`, and then this file, again after each
-- upgrade, because a new table has no grants:
--   psql --dbname autotune --file roles.sql
-- Hosts log in with roles of their own, which the owner creates and can take away one by one:
--   CREATE ROLE gpu7 LOGIN PASSWORD '...' IN ROLE autotune_worker;

DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'autotune_reader') THEN
        CREATE ROLE autotune_reader NOLOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'autotune_worker') THEN
        CREATE ROLE autotune_worker NOLOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'autotune_publisher') THEN
        CREATE ROLE autotune_publisher NOLOGIN;
    END IF;
END
$$;

-- Before PostgreSQL 15 everybody may create tables.
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
GRANT USAGE ON SCHEMA public TO autotune_reader, autotune_worker, autotune_publisher;

-- alembic_version too: no program uses a schema that it does not know.
GRANT SELECT ON ALL TABLES IN SCHEMA public TO autotune_reader, autotune_worker, autotune_publisher;

GRANT INSERT, UPDATE ON device, environment, sweep, record, "binary", job, worker TO autotune_worker;
-- What was measured is never changed.
GRANT INSERT ON trial, noisy, history TO autotune_worker;
-- Records that a recheck refutes, workers that nobody has seen for a week.
GRANT DELETE ON record, worker TO autotune_worker;
GRANT INSERT, UPDATE ON bundle TO autotune_publisher;
GRANT INSERT ON channel TO autotune_publisher;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO autotune_worker, autotune_publisher;
