-- The place: a level meadow in the natural landscape, with landmarks around it. Returns prepare(at, done): done(ground) is
-- called with the height of the ground when all blocks around exist. A world that has been prepared is used as it is.
local LEVEL, BLEND = 16, 24 -- m: the meadow is level up to here, and meets the landscape here
local FAR = 112 -- m: how far blocks are generated
local mark = minetest.get_worldpath() .. "/gamecraft_ground.txt"

local function is_ground(pos)
	local name = minetest.get_node(pos).name
	local groups = (minetest.registered_nodes[name] or {}).groups or {}
	return groups.soil or groups.sand or groups.stone or groups.cracky and not groups.tree and name ~= "air"
end

local function height(x, z, top)
	for y = top, top - 80, -1 do
		if is_ground({x = x, y = y, z = z}) then return y end
	end
	return top - 80
end

local function fill(from, to, name)
	local list = {}
	for x = from.x, to.x do for y = from.y, to.y do for z = from.z, to.z do list[#list + 1] = {x = x, y = y, z = z} end end end
	minetest.bulk_set_node(list, {name = name})
end

local function level_meadow(at, ground)
	local grass, soil, air = {}, {}, {}
	for dx = -BLEND, BLEND do for dz = -BLEND, BLEND do
		local x, z, distance = at.x + dx, at.z + dz, math.sqrt(dx * dx + dz * dz)
		if distance <= BLEND then
			local natural = height(x, z, ground + 40)
			local share = math.max(0, (distance - LEVEL) / (BLEND - LEVEL))
			local y = math.floor(ground + (natural - ground) * share + 0.5)
			for k = math.min(natural, y) - 3, y - 1 do soil[#soil + 1] = {x = x, y = k, z = z} end
			for k = y + 1, ground + 40 do air[#air + 1] = {x = x, y = k, z = z} end
			grass[#grass + 1] = {x = x, y = y, z = z}
		end
	end end
	minetest.bulk_set_node(air, {name = "air"})
	minetest.bulk_set_node(soil, {name = "default:dirt"})
	minetest.bulk_set_node(grass, {name = "default:dirt_with_grass"})
	return grass
end

local function plant(grass, at)
	local random = PcgRandom(7)
	local kinds = {"default:grass_2", "default:grass_3", "default:grass_4", "default:grass_3", "flowers:rose", "flowers:tulip",
		"flowers:dandelion_yellow", "flowers:geranium", "flowers:viola", "flowers:dandelion_white"}
	for _, pos in ipairs(grass) do
		local draw = random:next(1, 100)
		local kind = draw <= 6 and kinds[random:next(1, 4)] or draw <= 9 and kinds[random:next(5, #kinds)]
		if kind then minetest.set_node({x = pos.x, y = pos.y + 1, z = pos.z}, {name = kind}) end
	end
end

local function tree(at, ground, dx, dz, name)
	local file = minetest.get_modpath("default") .. "/schematics/" .. name .. ".mts"
	local x, z = at.x + dx, at.z + dz
	local y = height(x, z, ground + 20)
	minetest.place_schematic({x = x, y = y + (name:find("bush") and 0 or 1) - 1, z = z}, file, "0", nil, false,
		"place_center_x, place_center_z")
end

local function cottage(at, ground, dx, dz)
	local x, z = at.x + dx, at.z + dz
	fill({x = x - 3, y = ground - 1, z = z - 3}, {x = x + 3, y = ground, z = z + 3}, "default:cobble")
	fill({x = x - 3, y = ground + 1, z = z - 3}, {x = x + 3, y = ground + 4, z = z + 3}, "default:brick")
	fill({x = x - 2, y = ground + 1, z = z - 2}, {x = x + 2, y = ground + 4, z = z + 2}, "air")
	for _, corner in ipairs({{-3, -3}, {-3, 3}, {3, -3}, {3, 3}}) do
		fill({x = x + corner[1], y = ground + 1, z = z + corner[2]}, {x = x + corner[1], y = ground + 4, z = z + corner[2]},
			"default:tree")
	end
	for side = -3, 3, 6 do -- windows and doorways
		fill({x = x + side, y = ground + 2, z = z - 1}, {x = x + side, y = ground + 3, z = z + 1}, "default:glass")
		fill({x = x, y = ground + 1, z = z + side}, {x = x, y = ground + 3, z = z + side}, "air")
	end
	for k = 0, 4 do
		fill({x = x - 4 + k, y = ground + 5 + k, z = z - 4}, {x = x + 4 - k, y = ground + 5 + k, z = z + 4}, "default:acacia_wood")
	end
end

local function tower(at, ground, dx, dz)
	local x, z = at.x + dx, at.z + dz
	fill({x = x - 2, y = ground - 1, z = z - 2}, {x = x + 2, y = ground + 9, z = z + 2}, "default:stonebrick")
	fill({x = x - 3, y = ground + 10, z = z - 3}, {x = x + 3, y = ground + 10, z = z + 3}, "default:stone_block")
	for k = -3, 3, 2 do
		for _, corner in ipairs({{k, -3}, {k, 3}, {-3, k}, {3, k}}) do
			minetest.set_node({x = x + corner[1], y = ground + 11, z = z + corner[2]}, {name = "default:stone_block"})
		end
	end
	fill({x = x - 2, y = ground + 6, z = z}, {x = x + 2, y = ground + 7, z = z}, "default:meselamp")
	fill({x = x, y = ground + 6, z = z - 2}, {x = x, y = ground + 7, z = z + 2}, "default:meselamp")
end

local function arch(at, ground, dx, dz)
	local x, z = at.x + dx, at.z + dz
	for k = 0, 4 do
		local name = k % 2 == 0 and "wool:red" or "wool:white"
		minetest.set_node({x = x - 2, y = ground + 1 + k, z = z}, {name = name})
		minetest.set_node({x = x + 2, y = ground + 1 + k, z = z}, {name = name})
		minetest.set_node({x = x - 2 + k, y = ground + 6, z = z}, {name = name})
	end
end

local function boulder(at, ground, dx, dz)
	local x, z = at.x + dx, at.z + dz
	fill({x = x - 1, y = ground + 1, z = z - 1}, {x = x + 1, y = ground + 1, z = z + 1}, "default:mossycobble")
	fill({x = x, y = ground + 2, z = z}, {x = x + 1, y = ground + 2, z = z + 1}, "default:mossycobble")
end

local function decorate(at, ground)
	cottage(at, ground, 13, 12)
	tower(at, ground, -18, 4)
	arch(at, ground, 2, -15)
	boulder(at, ground, -7, -6)
	boulder(at, ground, 8, -5)
	for _, item in ipairs({{0, 17, "apple_tree"}, {-9, 13, "aspen_tree"}, {-13, 15, "aspen_tree"}, {17, -2, "pine_tree"},
		{20, -7, "pine_tree"}, {15, -11, "small_pine_tree"}, {-12, -13, "acacia_tree"}, {-5, 8, "bush"}, {6, 7, "blueberry_bush"},
		{-16, -5, "apple_tree"}, {9, -17, "jungle_tree"}}) do
		tree(at, ground, unpack(item))
	end
end

local function generate(at, done)
	local from, to = {x = at.x - FAR, y = -32, z = at.z - FAR}, {x = at.x + FAR, y = 79, z = at.z + FAR}
	minetest.emerge_area(from, to, function(_, _, left)
		if left == 0 then done() end
	end)
end

local function median_height(at)
	local list = {}
	for dx = -LEVEL, LEVEL, 4 do for dz = -LEVEL, LEVEL, 4 do list[#list + 1] = height(at.x + dx, at.z + dz, 70) end end
	table.sort(list)
	return list[math.ceil(#list / 2)]
end

local function prepare(at, done)
	local file = io.open(mark)
	if file then
		local ground = tonumber(file:read("*a"))
		file:close()
		minetest.after(0, done, ground)
		return
	end
	generate(at, function()
		local ground = median_height(at)
		local grass = level_meadow(at, ground)
		plant(grass, at)
		decorate(at, ground)
		minetest.fix_light({x = at.x - 32, y = ground - 8, z = at.z - 32}, {x = at.x + 32, y = ground + 44, z = at.z + 32})
		local out = io.open(mark, "w")
		out:write(tostring(ground))
		out:close()
		done(ground)
	end)
end

return prepare
