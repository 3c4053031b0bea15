-- The key is binary, so that keys which differ in case or in trailing spaces differ. The digest remembers the draft that
-- the key was first sent with, because the todo itself may have been changed since.
--
-- MySQL has no ADD COLUMN IF NOT EXISTS, so the statement is chosen by looking. One ALTER TABLE is atomic (MySQL from 8.0,
-- MariaDB from 10.6), so looking for one of its columns is looking for all of its effect.

SET @change = IF(
  (SELECT COUNT(*) FROM information_schema.columns
    WHERE table_schema = DATABASE() AND table_name = 'todo' AND column_name = 'idempotency_key') = 0,
  'ALTER TABLE todo
     ADD COLUMN idempotency_key    VARBINARY(255) NULL,
     ADD COLUMN idempotency_digest BINARY(32)     NULL,
     ADD UNIQUE KEY todo_idempotency_key (idempotency_key)',
  'DO 0');
PREPARE change_schema FROM @change;
EXECUTE change_schema;
DEALLOCATE PREPARE change_schema;
