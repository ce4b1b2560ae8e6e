-- Prepares the place of a recording once for a world, sets the player there, and acts events on the recorder's command.
-- Lines of the log are "GAMECRAFT_SERVER {json}". Settings: gamecraft_at = x,z; gamecraft_start = east,north,yaw (from the
-- middle of the place, degrees counter-clockwise from north); gamecraft_time_of_day; gamecraft_seed.
local path = minetest.get_modpath("gamecraft_server")
local settings = minetest.settings
local gamecraft = {player_name = "singleplayer"}

local function numbers(name)
	local list = {}
	for word in (settings:get(name) or ""):gmatch("[^,]+") do list[#list + 1] = tonumber(word) end
	return list
end

function gamecraft.log(line) minetest.log("action", "GAMECRAFT_SERVER " .. minetest.write_json(line)) end

gamecraft.random = PcgRandom(tonumber(settings:get("gamecraft_seed") or "0"))
gamecraft.at = {x = numbers("gamecraft_at")[1] or 0, z = numbers("gamecraft_at")[2] or 0}
gamecraft.start = numbers("gamecraft_start")
gamecraft.time_of_day = tonumber(settings:get("gamecraft_time_of_day") or "0.42")

local prepare_place = dofile(path .. "/place.lua")
local act = dofile(path .. "/events.lua")(gamecraft)

local channel = minetest.mod_channel_join("gamecraft")

-- The recorder's commands: lines of words in WORLD/commands.txt, which is read and removed.
local commands = minetest.get_worldpath() .. "/commands.txt"
minetest.register_globalstep(function()
	local player = minetest.get_player_by_name(gamecraft.player_name)
	local file = player and io.open(commands)
	if not file then return end
	local text = file:read("*a")
	file:close()
	os.remove(commands)
	for line in text:gmatch("[^\n]+") do
		local words = line:split(" ")
		local acted = act[words[1]](player, unpack(words, 2))
		if acted then channel:send_all(words[1]) end -- the client logs the frame in which this arrives
		gamecraft.log({event = "command", name = words[1], acted = acted})
	end
end)

minetest.register_on_joinplayer(function(player)
	minetest.set_timeofday(gamecraft.time_of_day)
	player:hud_set_flags({hotbar = false, healthbar = false, crosshair = false, wielditem = false, breathbar = false,
		minimap = false})
	player:set_clouds({density = 0})
	player:get_inventory():set_stack("main", 1, "gamecraft_server:torch")
	prepare_place(gamecraft.at, function(ground)
		gamecraft.ground = ground
		local east, north, yaw = unpack(gamecraft.start)
		player:set_pos({x = gamecraft.at.x + (east or 0), y = ground + 0.5, z = gamecraft.at.z + (north or 0)})
		player:set_look_horizontal(math.rad(yaw or 0))
		player:set_look_vertical(0)
		minetest.after(1, function()
			gamecraft.log({event = "ready", ground = ground, x = gamecraft.at.x, z = gamecraft.at.z})
		end)
	end)
end)
