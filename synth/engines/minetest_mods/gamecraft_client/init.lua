-- The client's global step runs once for every drawn frame, so that one line of the log is one frame of the video.
-- A line is "GAMECRAFT_FRAME {json}". Its camera is that of the frame before: the engine moves the camera after this step.
local frame, squares = 0, {}
local draws_number = minetest.settings and minetest.settings:get_bool("gamecraft_draw_number")
local BITS, SQUARE_PX = 12, 8
local CONTROLS = {"up", "down", "left", "right", "jump", "sneak"}

local function rounded(p)
	local function round(x) return math.floor(x * 1e6 + 0.5) / 1e6 end
	return {round(p.x), round(p.y), round(p.z)}
end

-- Draw the frame's number as black and white squares from the lower left corner, lowest bit first: it shows which line of the
-- log belongs to which picture.
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

-- The server says which event it has acted, and the engine hands this over before the step of the frame in which it arrives.
local arrived
minetest.register_on_modchannel_message(function(_, _, message) arrived = message end)

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
	local eye, direction, fov = camera:get_pos(), camera:get_look_dir(), camera:get_fov()
	if not (eye and direction and fov) then return end
	minetest.log("action", "GAMECRAFT_FRAME " .. minetest.write_json({number = frame, position = rounded(player:get_pos()),
		eye = rounded(eye), direction = rounded(direction), hfov_deg = fov.x, vfov_deg = fov.y, keys = keys,
		in_liquid = player:is_in_liquid(), event = arrived}))
	arrived = nil
end)
