"""Where memory and time go, by call stack: sampled, added up over processes, drawn, written as files."""
