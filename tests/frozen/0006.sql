BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0006');
CREATE TABLE binary (
	id INTEGER NOT NULL, 
	unit_key VARCHAR NOT NULL, 
	sha256 VARCHAR NOT NULL, 
	arch VARCHAR NOT NULL, 
	compiler VARCHAR NOT NULL, 
	cubin BLOB NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (unit_key)
);
INSERT INTO "binary" VALUES(1,'unit','d08b4715e4b7ecaf9e04025601418d1316f950b41af364fe99d2eee6808c8d5f','sm_90','NVRTC 13.0',X'7F454C4620637562696E');
CREATE TABLE bundle (
	id INTEGER NOT NULL, 
	digest VARCHAR NOT NULL, 
	name VARCHAR NOT NULL, 
	content BLOB NOT NULL, 
	created_at DOUBLE NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (digest)
);
CREATE TABLE channel (
	id INTEGER NOT NULL, 
	name VARCHAR NOT NULL, 
	bundle_id INTEGER NOT NULL, 
	at DOUBLE NOT NULL, 
	reason VARCHAR NOT NULL, 
	PRIMARY KEY (id), 
	CHECK (name IN ('stable', 'candidate')), 
	FOREIGN KEY(bundle_id) REFERENCES bundle (id)
);
CREATE TABLE device (
	id INTEGER NOT NULL, 
	name VARCHAR NOT NULL, 
	arch VARCHAR NOT NULL, 
	kind VARCHAR NOT NULL, 
	cores INTEGER NOT NULL, 
	l2_bytes BIGINT NOT NULL, 
	shared_bytes BIGINT NOT NULL, 
	memory_bytes BIGINT NOT NULL, 
	PRIMARY KEY (id), 
	CHECK (kind IN ('cuda', 'cpu')), 
	UNIQUE (name, arch)
);
INSERT INTO "device" VALUES(1,'NVIDIA H200','sm_90','cuda',132,52428800,232448,151397597184);
CREATE TABLE environment (
	id INTEGER NOT NULL, 
	digest VARCHAR NOT NULL, 
	driver VARCHAR NOT NULL, 
	compiler VARCHAR NOT NULL, 
	torch VARCHAR NOT NULL, 
	version VARCHAR NOT NULL, 
	sources JSON NOT NULL, 
	PRIMARY KEY (id), 
	UNIQUE (digest)
);
INSERT INTO "environment" VALUES(1,'fa36565f061e7d890f4c2687096045d656ccdc1e8530d4ac2a6e44cb1a07b390','CUDA 13.0','NVRTC 13.0','2.13.0','0.1.0','{"mma": "0123456789abcdef", "dequant_matmul": "fedcba9876543210"}');
CREATE TABLE history (
	id INTEGER NOT NULL, 
	device_id INTEGER NOT NULL, 
	environment_id INTEGER NOT NULL, 
	n INTEGER NOT NULL, 
	k INTEGER NOT NULL, 
	scheme VARCHAR NOT NULL, 
	m INTEGER NOT NULL, 
	config VARCHAR NOT NULL, 
	mode VARCHAR NOT NULL, 
	source_hash VARCHAR NOT NULL, 
	event VARCHAR NOT NULL, 
	at DOUBLE NOT NULL, 
	median_us DOUBLE, 
	low_us DOUBLE, 
	high_us DOUBLE, 
	clock_mhz INTEGER, 
	temperature_c INTEGER, 
	PRIMARY KEY (id), 
	CHECK (mode IN ('model', 'graph', 'hot', 'server')), 
	CHECK (event IN ('sweep', 'kept', 'replaced', 'dropped', 'import')), 
	FOREIGN KEY(device_id) REFERENCES device (id), 
	FOREIGN KEY(environment_id) REFERENCES environment (id)
);
INSERT INTO "history" VALUES(1,1,1,4096,4096,'int4-g128-zp-fp16',1,'mma:tile_m=8,split_k=1','graph','0123456789abcdef','sweep',1735689600.0,5.25,5.125,5.5,NULL,NULL);
INSERT INTO "history" VALUES(2,1,1,4096,4096,'int4-g128-zp-fp16',16,'mma:tile_m=16,split_k=4','server','0123456789abcdef','sweep',1735689601.0,5.25,5.125,5.5,NULL,NULL);
CREATE TABLE job (
	id INTEGER NOT NULL, 
	n INTEGER NOT NULL, 
	k INTEGER NOT NULL, 
	scheme VARCHAR NOT NULL, 
	m INTEGER NOT NULL, 
	device_id INTEGER NOT NULL, 
	source_hash VARCHAR NOT NULL, 
	priority DOUBLE NOT NULL, 
	state VARCHAR NOT NULL, 
	attempts INTEGER NOT NULL, 
	worker VARCHAR, 
	lease_until DOUBLE, 
	not_before DOUBLE NOT NULL, 
	reason VARCHAR, 
	created_at DOUBLE NOT NULL, 
	PRIMARY KEY (id), 
	CHECK (state IN ('queued', 'running', 'parked', 'cancelled', 'done')), 
	UNIQUE (n, k, scheme, m, device_id, source_hash), 
	FOREIGN KEY(device_id) REFERENCES device (id)
);
INSERT INTO "job" VALUES(1,4096,4096,'int4-g128-zp-fp16',1,1,'a5a5a5a5a5a5a5a5',2.5,'done',1,'host:1:0',NULL,1750000000.25,NULL,1750000000.25);
INSERT INTO "job" VALUES(2,4096,4096,'int4-g128-zp-fp16',16,1,'a5a5a5a5a5a5a5a5',1.5,'parked',3,NULL,NULL,1750000120.5,'differs at [0, 3]',1750000000.25);
CREATE TABLE noisy (
	id INTEGER NOT NULL, 
	sweep_id INTEGER NOT NULL, 
	n INTEGER NOT NULL, 
	k INTEGER NOT NULL, 
	scheme VARCHAR NOT NULL, 
	m INTEGER NOT NULL, 
	reason VARCHAR NOT NULL, 
	created_at DOUBLE NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(sweep_id) REFERENCES sweep (id)
);
CREATE TABLE origin (
	id INTEGER NOT NULL, 
	name VARCHAR NOT NULL, 
	digest VARCHAR, 
	PRIMARY KEY (id), 
	UNIQUE (name)
);
CREATE TABLE pulled (
	id INTEGER NOT NULL, 
	origin_id INTEGER NOT NULL, 
	since INTEGER NOT NULL, 
	until INTEGER, 
	version VARCHAR NOT NULL, 
	device_id INTEGER NOT NULL, 
	n INTEGER NOT NULL, 
	k INTEGER NOT NULL, 
	scheme VARCHAR NOT NULL, 
	m INTEGER NOT NULL, 
	config VARCHAR NOT NULL, 
	median_us DOUBLE NOT NULL, 
	low_us DOUBLE NOT NULL, 
	high_us DOUBLE NOT NULL, 
	default_config VARCHAR NOT NULL, 
	default_us DOUBLE NOT NULL, 
	source_hash VARCHAR NOT NULL, 
	created_at DOUBLE NOT NULL, 
	mode VARCHAR NOT NULL, 
	environment_id INTEGER NOT NULL, 
	binary_id INTEGER, 
	evidence JSON, 
	PRIMARY KEY (id), 
	CHECK (mode IN ('model', 'graph', 'hot', 'server')), 
	FOREIGN KEY(origin_id) REFERENCES origin (id), 
	FOREIGN KEY(since) REFERENCES pulled_set (id), 
	FOREIGN KEY(until) REFERENCES pulled_set (id), 
	FOREIGN KEY(device_id) REFERENCES device (id), 
	FOREIGN KEY(environment_id) REFERENCES environment (id), 
	FOREIGN KEY(binary_id) REFERENCES binary (id)
);
CREATE TABLE pulled_set (
	id INTEGER NOT NULL, 
	name VARCHAR NOT NULL, 
	origin_id INTEGER NOT NULL, 
	bundle VARCHAR, 
	signer VARCHAR, 
	pulled_at DOUBLE NOT NULL, 
	rolled_back BOOLEAN NOT NULL, 
	PRIMARY KEY (id), 
	FOREIGN KEY(origin_id) REFERENCES origin (id)
);
CREATE TABLE record (
	id INTEGER NOT NULL, 
	device_id INTEGER NOT NULL, 
	n INTEGER NOT NULL, 
	k INTEGER NOT NULL, 
	scheme VARCHAR NOT NULL, 
	m INTEGER NOT NULL, 
	config VARCHAR NOT NULL, 
	median_us DOUBLE NOT NULL, 
	low_us DOUBLE NOT NULL, 
	high_us DOUBLE NOT NULL, 
	default_config VARCHAR NOT NULL, 
	default_us DOUBLE NOT NULL, 
	source_hash VARCHAR NOT NULL, 
	created_at DOUBLE NOT NULL, 
	mode VARCHAR NOT NULL, 
	dense_us DOUBLE, 
	trial_id INTEGER, 
	environment_id INTEGER NOT NULL, 
	binary_id INTEGER, 
	evidence JSON, 
	PRIMARY KEY (id), 
	CHECK (mode IN ('model', 'graph', 'hot', 'server')), 
	UNIQUE (device_id, n, k, scheme, m, mode, source_hash), 
	FOREIGN KEY(device_id) REFERENCES device (id), 
	FOREIGN KEY(trial_id) REFERENCES trial (id), 
	FOREIGN KEY(environment_id) REFERENCES environment (id), 
	FOREIGN KEY(binary_id) REFERENCES binary (id)
);
INSERT INTO "record" VALUES(1,1,4096,4096,'int4-g128-zp-fp16',1,'mma:tile_m=8,split_k=1',5.25,5.125,5.5,'mma:tile_m=64,split_k=1',7.75,'0123456789abcdef',1735689600.0,'graph',NULL,2,1,1,NULL);
INSERT INTO "record" VALUES(2,1,4096,4096,'int4-g128-zp-fp16',16,'mma:tile_m=16,split_k=4',5.25,5.125,5.5,'mma:tile_m=64,split_k=1',7.75,'0123456789abcdef',1735689601.0,'server',NULL,5,1,NULL,'{"mode": "server", "rounds": 25, "gain": [1.5, 1.25, 1.75], "ties": ["mma:tile_m=8,split_k=4"], "runners_up": [["mma:tile_m=16,split_k=1", 5.75], ["dequant_matmul:", 6.5]], "clock_mhz": 1980, "deviation": 0.125, "floor_us": 3.5}');
CREATE TABLE sweep (
	id INTEGER NOT NULL, 
	device_id INTEGER NOT NULL, 
	environment_id INTEGER NOT NULL, 
	started_at DOUBLE NOT NULL, 
	finished_at DOUBLE, 
	status VARCHAR NOT NULL, 
	arguments JSON NOT NULL, 
	PRIMARY KEY (id), 
	CHECK (status IN ('running', 'finished', 'interrupted', 'failed')), 
	FOREIGN KEY(device_id) REFERENCES device (id), 
	FOREIGN KEY(environment_id) REFERENCES environment (id)
);
INSERT INTO "sweep" VALUES(1,1,1,1795258733.0,1795258733.0,'finished','{"shapes": "llama7b"}');
CREATE TABLE trial (
	id INTEGER NOT NULL, 
	sweep_id INTEGER NOT NULL, 
	n INTEGER NOT NULL, 
	k INTEGER NOT NULL, 
	scheme VARCHAR NOT NULL, 
	m INTEGER NOT NULL, 
	config VARCHAR NOT NULL, 
	status VARCHAR NOT NULL, 
	median_us DOUBLE, 
	low_us DOUBLE, 
	high_us DOUBLE, 
	samples BLOB NOT NULL, 
	error VARCHAR, 
	mode VARCHAR NOT NULL, 
	clock_mhz INTEGER, 
	deviation DOUBLE, 
	source_hash VARCHAR, 
	PRIMARY KEY (id), 
	CHECK (status IN ('ok', 'failed', 'wrong', 'pruned')), 
	CHECK (mode IN ('model', 'graph', 'hot', 'server')), 
	FOREIGN KEY(sweep_id) REFERENCES sweep (id)
);
INSERT INTO "trial" VALUES(1,1,4096,4096,'int4-g128-zp-fp16',1,'mma:tile_m=64,split_k=1','ok',7.75,7.5,8.0,X'0000F0400000F84000000041',NULL,'graph',NULL,NULL,NULL);
INSERT INTO "trial" VALUES(2,1,4096,4096,'int4-g128-zp-fp16',1,'mma:tile_m=8,split_k=1','ok',5.25,5.125,5.5,X'0000A0400000A8400000B040',NULL,'graph',NULL,NULL,NULL);
INSERT INTO "trial" VALUES(3,1,4096,4096,'int4-g128-zp-fp16',1,'mma:tile_m=8,split_k=2','failed',NULL,NULL,NULL,X'','launch failed: invalid argument','graph',NULL,NULL,NULL);
INSERT INTO "trial" VALUES(4,1,4096,4096,'int4-g128-zp-fp16',16,'mma:tile_m=64,split_k=1','ok',7.75,7.5,8.0,X'0000F0400000F84000000041',NULL,'server',1980,0.125,'0123456789abcdef');
INSERT INTO "trial" VALUES(5,1,4096,4096,'int4-g128-zp-fp16',16,'mma:tile_m=16,split_k=4','ok',5.25,5.125,5.5,X'0000A0400000A8400000B040',NULL,'server',1980,0.125,'0123456789abcdef');
INSERT INTO "trial" VALUES(6,1,4096,4096,'int4-g128-zp-fp16',16,'mma:tile_m=8,split_k=2','failed',NULL,NULL,NULL,X'','launch failed: invalid argument','server',1980,0.125,'0123456789abcdef');
CREATE TABLE worker (
	name VARCHAR NOT NULL, 
	host VARCHAR NOT NULL, 
	device_id INTEGER NOT NULL, 
	state VARCHAR NOT NULL, 
	job_id INTEGER, 
	last_seen DOUBLE NOT NULL, 
	started_at DOUBLE NOT NULL, 
	PRIMARY KEY (name), 
	CHECK (state IN ('idle', 'tuning', 'waiting', 'stopped')), 
	FOREIGN KEY(device_id) REFERENCES device (id), 
	FOREIGN KEY(job_id) REFERENCES job (id) ON DELETE SET NULL
);
INSERT INTO "worker" VALUES('host:1:0','host',1,'idle',NULL,1750000300.0,1750000000.0);
CREATE INDEX trial_problem ON trial (n, k, m, scheme, sweep_id);
CREATE INDEX ix_record_trial_id ON record (trial_id);
CREATE INDEX ix_record_binary_id ON record (binary_id);
CREATE INDEX job_open ON job (device_id, source_hash, priority DESC, id) WHERE state IN ('queued', 'running');
CREATE INDEX history_problem ON history (n, k, m, scheme, device_id);
CREATE INDEX pulled_layer ON pulled (device_id, n, k, scheme);
CREATE INDEX pulled_since ON pulled (since);
CREATE INDEX pulled_until ON pulled (until);
CREATE INDEX ix_pulled_binary_id ON pulled (binary_id);
COMMIT;
