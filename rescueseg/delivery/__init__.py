"""What people take home: masks, objects and tables of whole volumes."""
