-- Events that the recorder commands. Returns, for the state of the recording, a table of functions act.NAME(player, ...).
return function(gamecraft)
	local act = {}
	return act
end
