"""What iterations take: profiles, the times of their parts, closed forms, and the walk of a plan."""
