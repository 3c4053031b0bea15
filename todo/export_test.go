package todo

// MigrationStatements returns the statements of every migration in order, for tests that stop between two of them.
func MigrationStatements() ([][]string, error) {
	steps, err := loadMigrations(migrationFiles)
	var statements [][]string
	for _, step := range steps {
		statements = append(statements, step.statements)
	}
	return statements, err
}
