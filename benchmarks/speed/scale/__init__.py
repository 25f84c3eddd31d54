"""What more workers bring: measured with few of them, and projected to many."""
