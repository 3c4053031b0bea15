-- One row for each write that was sent with a key, committed together with the write: whoever finds the key knows that the
-- write is done. It outlives the todo, so that a deletion can be answered again, and a creation that comes late finds it.
-- The time is UTC, given by the statement: a TIMESTAMP's comparison would jump with the server's summer time.

CREATE TABLE IF NOT EXISTS todo_write (
  idempotency_key VARBINARY(255) NOT NULL,
  digest          BINARY(32)     NOT NULL,
  todo_id         BIGINT         NOT NULL,
  created_at      DATETIME       NOT NULL,
  PRIMARY KEY (idempotency_key),
  KEY todo_write_created_at (created_at)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
