"""Parts that several methods are built from; a part that only one method has lies with that method."""
