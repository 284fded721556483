"""What a task file is: its text, its schema, its variables, and the plan that it becomes."""
