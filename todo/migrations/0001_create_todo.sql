-- The statements of a migration must leave the same schema when they are run again after stopping anywhere: MySQL ends
-- its transaction at every change of the schema, so there is nothing to roll back after a crash. A released migration is
-- never edited, and the next one only adds: while a new version is rolled out, the old one still serves.
-- A statement ends with a semicolon at the end of its line.

CREATE TABLE IF NOT EXISTS todo (
  id      BIGINT        NOT NULL AUTO_INCREMENT,
  status  VARCHAR(32)   NOT NULL,
  content VARCHAR(4096) NOT NULL,
  PRIMARY KEY (id)
) ENGINE = InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
