-- The client's global step runs once for every drawn frame, so that one line of the log is one frame of the video.
-- A line is "GAMECRAFT_FRAME {json}". Its camera is that of the frame before: the engine moves the camera after this step.
-- `events` has what the client did or got to know since the frame before: blocks dug, placed and changed near the player, and the
-- server's messages.
local frame, events, known = 0, {}, {}
local draws_number = minetest.settings and minetest.settings:get_bool("gamecraft_draw_number")
local REACH, REACH_UP, MAX_CHANGES, BITS, SQUARE_PX = 5, 3, 24, 12, 8
local CONTROLS = {"up", "down", "left", "right", "jump", "sneak", "dig", "place"}
local squares = {}

local function round(x) return math.floor(x * 1e4 + 0.5) / 1e4 end
local function rounded(p) return {round(p.x), round(p.y), round(p.z)} end
local function note(event) events[#events + 1] = event end

minetest.register_on_dignode(function(pos, node) note({name = "dug", pos = rounded(pos), node = node.name}) end)
minetest.register_on_placenode(function(pointed, node)
	note({name = "placed", pos = pointed.above and rounded(pointed.above) or nil, node = node.name})
end)
minetest.register_on_modchannel_message(function(_, _, message) note(minetest.parse_json(message)) end)

-- Blocks around the player that changed since the frame before, as the client knows them: they are what is drawn.
local function note_changes(at)
	local now, count = {}, 0
	local bx, by, bz = math.floor(at.x + 0.5), math.floor(at.y + 0.5), math.floor(at.z + 0.5)
	for x = bx - REACH, bx + REACH do for z = bz - REACH, bz + REACH do for y = by - REACH_UP, by + REACH_UP do
		local node = minetest.get_node_or_nil({x = x, y = y, z = z})
		if node then
			local key = (x * 4096 + z) * 4096 + y
			local what = node.name == "air" and "air" or node.name .. "/" .. node.param2
			now[key] = what
			local before = known[key]
			if before and before ~= what and count < MAX_CHANGES and not (what:find("flowing") or before:find("flowing")) then
				count = count + 1
				note({name = "changed", pos = {x, y, z}, before = before, now = what})
			end
		end
	end end end
	known = now
end

local function draw_number(player)
	local rest = frame
	for bit = 1, BITS do
		local colour = rest % 2 == 1 and "#FFFFFF" or "#000000"
		local text = ("blank.png^[noalpha^[colorize:%s:255^[resize:%dx%d"):format(colour, SQUARE_PX, SQUARE_PX)
		if squares[bit] then
			player:hud_change(squares[bit], "text", text)
		else
			squares[bit] = player:hud_add({hud_elem_type = "image", position = {x = 0, y = 1}, text = text,
				offset = {x = (bit - 1) * SQUARE_PX, y = 0}, scale = {x = 1, y = 1}, alignment = {x = 1, y = -1}})
		end
		rest = math.floor(rest / 2)
	end
end

minetest.register_globalstep(function()
	local player, camera = minetest.localplayer, minetest.camera
	if not player or not camera then return end
	frame = frame + 1
	if frame == 1 then minetest.mod_channel_join("gamecraft") end -- not before there is a server
	if draws_number then draw_number(player) end
	local keys, control = {}, player:get_control()
	for _, key in ipairs(CONTROLS) do
		if control[key] then keys[#keys + 1] = key end
	end
	local position = player:get_pos()
	note_changes(position)
	local eye, direction, fov = camera:get_pos(), camera:get_look_dir(), camera:get_fov()
	if not (eye and direction and fov) then return end
	local item = player:get_wielded_item()
	minetest.log("action", "GAMECRAFT_FRAME " .. minetest.write_json({number = frame, position = rounded(position),
		eye = rounded(eye), direction = rounded(direction), hfov_deg = fov.x, vfov_deg = fov.y, keys = keys,
		slot = player:get_wield_index(), item = item and item:get_name() or "", in_liquid = player:is_in_liquid(), events = events}))
	events = {}
end)
