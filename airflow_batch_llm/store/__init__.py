"""State, in SQL: all the SQL there is."""
