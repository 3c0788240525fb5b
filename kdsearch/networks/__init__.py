"""Whatever answers: adapters to networks, their weights, teachers, fresh students."""
